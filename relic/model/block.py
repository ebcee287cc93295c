"""One layer of Wan-2.1's transformer, with RELIC's two control inputs."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.masks import Segment
from relic.model import config
from relic.model.attention import CrossAttention, KeyValue, Rotary, SelfAttention


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without weights in float32, then x (1 + scale) + shift.

    x is [B, F, S, D], shift and scale are [B, F, 1, D].
    """
    return (functional.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


class Block(nn.Module):
    def __init__(self, cfg: config.Transformer):
        super().__init__()
        self.attention = SelfAttention(cfg.width, cfg.heads)
        self.cross_attention = CrossAttention(cfg.width, cfg.heads)
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
        past: KeyValue | None,
        segments: tuple[Segment, ...] | None,
    ) -> tuple[Tensor, KeyValue]:
        """x [B, F, S, D] (S tokens a latent); time [B, F, 6, D]; text [B, L, D]; action, pose [B, F, D]."""
        frames = x.shape[1]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (time + self.modulation).unsqueeze(3).unbind(2)

        def flat(y: Tensor) -> Tensor:
            return rearrange(y, "b f s d -> b (f s) d")

        def by_frame(y: Tensor) -> Tensor:
            return rearrange(y, "b (f s) d -> b f s d", f=frames)

        pose_tokens = flat(pose[:, :, None].expand(-1, -1, x.shape[2], -1))
        attended, own = self.attention(flat(modulated_norm(x, shift, scale)), pose_tokens, rotary, past, segments)
        x = x + (by_frame(attended) * gate).to(x.dtype) + action[:, :, None].to(x.dtype)
        x = x + by_frame(self.cross_attention(flat(self.cross_norm(x)), text))
        x = x + (self.ffn(modulated_norm(x, ffn_shift, ffn_scale)) * ffn_gate).to(x.dtype)
        return x, own
