"""The pipeline: components, the graph that wires them, and the back end that runs it here."""
