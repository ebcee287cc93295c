"""Several processes that train one model: who is who, who holds what, and what they send each other."""
