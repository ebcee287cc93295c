"""The networks: the video codec and the diffusion transformer with its two control paths."""
