"""What takes a finished model to where people meet it. Loads no torch: it runs commands."""
