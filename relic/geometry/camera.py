"""Pinhole cameras: pixels to rays. Pixel i covers [i, i + 1), its centre is i + 0.5; OpenCV axes."""

import torch
from torch import Tensor


def rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Camera-frame rays [height, width, 3] with z = 1 through the pixel centres.

    `intrinsics` [4] = fx fy cx cy in pixels.
    """
    fx, fy, cx, cy = intrinsics.unbind(-1)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=intrinsics.dtype) + 0.5,
        torch.arange(width, dtype=intrinsics.dtype) + 0.5,
        indexing="ij",
    )
    return torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)], -1)
