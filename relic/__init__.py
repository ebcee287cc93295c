"""relic: an open implementation of RELIC (arXiv 2512.04040), an interactive video world model.

The legend of shapes, used in every docstring:
    B batch · F latent frames · F_px (or T in geometry) pixel frames · C channels · H W latent height and width ·
    N tokens · D width of the transformer · K heads · L text tokens
A video of F_px = 4 (F - 1) + 1 frames has F latents: frame 0 alone, then four frames a latent.
A pose is a camera-to-world 4x4 in OpenCV axes (x right, y down, z forward).
"""

__version__ = "0.1.0"
