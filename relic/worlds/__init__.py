"""Worlds that record walks with exact poses: Doom maps and procedural rooms."""
