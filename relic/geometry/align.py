"""Least-squares similarity between two point sets (Umeyama 1991)."""

import torch
from torch import Tensor


def umeyama(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale [], rotation [3, 3] and translation [3] minimising |target - (s R source + t)|^2 over points [N, 3].

    A set without extent has no scale: 0 spread in `source` raises ValueError."""
    mean_source, mean_target = source.mean(0), target.mean(0)
    a, b = source - mean_source, target - mean_target
    spread = a.square().sum() / len(source)
    if spread <= 1e-18:
        raise ValueError(f"the {len(source)} source points coincide; a similarity needs points that differ")
    u, singular, vh = torch.linalg.svd(b.mT @ a / len(source))
    sign = torch.ones(3, dtype=source.dtype)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = u @ torch.diag(sign) @ vh
    scale = (singular * sign).sum() / spread
    return scale, rotation, mean_target - scale * rotation @ mean_source
