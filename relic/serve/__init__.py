"""Serving: a page in which a person walks through a world, and the session API behind it."""
