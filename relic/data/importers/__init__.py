"""Readers of foreign formats, one file a format; each gives Recordings in our one convention."""
