"""Pinhole cameras: pixels to rays and back. Pixel i covers [i, i + 1), its centre is i + 0.5; OpenCV axes."""

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


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [..., 2] and depths [...] of camera-frame points [..., 3]; a depth <= 0 is behind the camera."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x, y, depth = points.unbind(-1)
    safe = depth.clamp(min=1e-9)
    return torch.stack([x / safe * fx + cx, y / safe * fy + cy], -1), depth
