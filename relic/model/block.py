"""One layer of Wan-2.1's transformer, with RELIC's two control inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.masks import Segment
from relic.model import config
from relic.model.attention import CrossAttention, KeyValue, Past, Rotary, SelfAttention


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without weights in float32, then x (1 + scale) + shift.

    x is [B, F, S, D], shift and scale are [B, F, 1, D].
    """
    return torch.addcmul(shift, functional.layer_norm(x.float(), x.shape[-1:], eps=eps), 1 + scale).to(x.dtype)


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y gate, added in float32; x and y are [B, F, S, D], gate is [B, F, 1, D]."""
    return torch.addcmul(x.float(), y.float(), gate).to(x.dtype)


class Block(nn.Module):
    def __init__(self, cfg: config.Transformer):
        super().__init__()
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.attention)
        self.cross_attention = CrossAttention(cfg.width, cfg.heads, cfg.attention)
        self.cross_norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(cfg.width, cfg.ffn), nn.GELU("tanh"), nn.Linear(cfg.ffn, cfg.width))
        self.modulation = nn.Parameter(torch.randn(6, cfg.width) / cfg.width**0.5)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        action: Tensor,
        pose: Tensor,
        rotary: Rotary,
        past: Past | None,
        segments: tuple[Segment, ...] | None,
        remember: bool,
    ) -> tuple[Tensor, KeyValue | None]:
        """x [B, F, S, D] (S tokens a latent); time [B, F, 6, D]; text [B, L, D]; action, pose [B, F, D]."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (time + self.modulation).unsqueeze(3).unbind(2)
        attended, own = self.attention(modulated_norm(x, shift, scale), pose, rotary, past, segments, remember)
        x = gated(x, attended, gate).add_(action[:, :, None])  # in place: `gated` keeps no result for its gradient
        x = x + self.cross_attention(self.cross_norm(x), text)
        x = gated(x, self.ffn(modulated_norm(x, ffn_shift, ffn_scale)), ffn_gate)
        return x, own
