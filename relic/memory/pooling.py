"""Spatial pooling of keys and values: how a latent is compressed."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional


def pool(x: Tensor, stride: int) -> Tensor:
    """Averages [..., rows, columns, C] over cells of stride x stride, smaller at the edges.

    Returns [..., rows', columns', C].
    """
    if stride == 1:
        return x
    flat = rearrange(x.reshape(-1, *x.shape[-3:]), "n h w c -> n c h w")
    pooled = functional.avg_pool2d(flat.float(), stride, ceil_mode=True, count_include_pad=False).to(x.dtype)
    return rearrange(pooled, "n c h w -> n h w c").reshape(*x.shape[:-3], *pooled.shape[-2:], x.shape[-1])


def pool_picture(x: Tensor, stride: int, patch: tuple[int, int]) -> Tensor:
    """Averages a latent [B, C, H, W] so that its patches are cells of stride x stride of the old ones.

    The edges are repeated where the patches do not divide by the stride: [B, C, ceil(H / p / stride) p, ...]."""
    sides = [-(-n // (p * stride)) * p * stride for n, p in zip(x.shape[-2:], patch, strict=True)]
    padding = (0, sides[1] - x.shape[-1], 0, sides[0] - x.shape[-2])
    return functional.avg_pool2d(functional.pad(x, padding, mode="replicate"), stride)


def centres(rows: int, columns: int, stride: int) -> Tensor:
    """Row and column [rows', columns', 2] of the pooled cells' centres, in cells of the unpooled grid."""
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return pool(torch.stack([y, x], -1), stride)


def log_cells(rows: int, columns: int, stride: int) -> Tensor:
    """Logarithm [rows', columns'] of how many cells of the unpooled grid each pooled token stands for."""
    height, width = (torch.tensor([min(stride, n - i) for i in range(0, n, stride)]) for n in (rows, columns))
    return (height[:, None] * width).float().log()
