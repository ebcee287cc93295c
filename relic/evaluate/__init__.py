"""What a trained world is worth: figures and the report."""
