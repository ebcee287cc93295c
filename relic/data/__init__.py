"""Clips: recorded or imported, filtered, captioned, annotated; and the shards made of them."""
