"""The training scripts, each with its whole loop in view."""
