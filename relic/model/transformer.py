"""The diffusion transformer: Wan-2.1's text-to-video DiT, a timestep for every latent frame, RELIC's control paths."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.masks import Segment
from relic.model import config, rope
from relic.model.attention import KeyValue, Past, Rotary
from relic.model.block import Block, modulated_norm
from relic.model.conditions import Conditions
from relic.model.control import POSE_WIDTH, ControlEncoder, pose_features
from relic.parallel.sequence import ALONE, Sequence

NUM_ACTIONS = 13


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding [..., width] of timesteps, cosines first (Wan's order).

    Angles are float32, as in diffusers. Wan's own release has float64, which at timestep 1000 differs by some 3e-5."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angle = timesteps.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class Transformer(nn.Module):
    sequence: Sequence = ALONE

    def __init__(self, cfg: config.Transformer):
        super().__init__()
        self.cfg = cfg
        patch = cfg.latent_channels * math.prod(cfg.patch)
        if cfg.text_vocabulary:
            self.text_table = nn.Embedding(cfg.text_vocabulary, cfg.text_width)
        self.patch_embedding = nn.Linear(patch, cfg.width)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_width, cfg.width), nn.GELU("tanh"), nn.Linear(cfg.width, cfg.width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(cfg.frequency_width, cfg.width), nn.SiLU(), nn.Linear(cfg.width, cfg.width)
        )
        self.time_projection = nn.Linear(cfg.width, 6 * cfg.width)
        self.action_encoder = ControlEncoder(NUM_ACTIONS, cfg.control_width, cfg.width, cfg.layers)
        self.pose_encoder = ControlEncoder(POSE_WIDTH, cfg.control_width, cfg.width, cfg.layers)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.head_modulation = nn.Parameter(torch.randn(2, cfg.width) / cfg.width**0.5)
        self.head = nn.Linear(cfg.width, patch)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        times: Tensor | None = None,
        past: list[Past] | None = None,
        segments: tuple[Segment, ...] | None = None,
        pooled: tuple[int, int, int] | None = None,
        remember: bool = False,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Velocity [B, F, C, H, W] of noisy latents [B, F, C, H, W] at timesteps [B, F]; and, to `remember`, every
        block's own keys (before rotation) and values, else none: of 80 latents of Wan 14B they are 95 GiB.

        `times` [F] are the latents' temporal positions (default 0, 1, ...); `past` holds each block's earlier keys and
        values; `segments` says who sees whom inside the call (default: everyone everyone); `pooled` of latents that
        have been pooled are the stride, and the rows and columns of tokens before."""
        rows, columns = latents.shape[-2] // self.cfg.patch[1], latents.shape[-1] // self.cfg.patch[2]
        patches = rearrange(latents, "b f c (h p) (w q) -> b f (h w) (c p q)", p=self.cfg.patch[1], q=self.cfg.patch[2])
        x = self.patch_embedding(self.sequence.split(patches))
        embedded = self.time_embedding(sinusoid(timesteps, self.cfg.frequency_width))
        time = rearrange(self.time_projection(functional.silu(embedded)).float(), "b f (m d) -> b f m d", m=6)
        text = self.embed_text(conditions.text)
        actions = self.action_encoder(conditions.actions)
        poses = self.pose_encoder(pose_features(conditions.poses, self.cfg.position_scale))
        if times is None:
            times = torch.arange(latents.shape[1], device=latents.device)
        strides = {stride for segment in segments or () for _, stride in segment.seen}
        own, *grid = pooled or (1, rows, columns)
        rotary = Rotary(times, grid[0], grid[1], self.rope_table(times.device), strides=strides, own=own)

        remembered = []
        for index, block in enumerate(self.blocks):
            before = past[index] if past is not None else None
            x, key_value = block(x, time, text, actions[index], poses[index], rotary, before, segments, remember)
            if key_value is not None:
                remembered.append(key_value)
        shift, scale = (embedded.float()[:, :, None] + self.head_modulation).unsqueeze(3).unbind(2)
        x = self.sequence.join(self.head(modulated_norm(x, shift, scale)).float(), rows * columns)
        velocity = rearrange(
            x, "b f (h w) (c p q) -> b f c (h p) (w q)", h=rows, p=self.cfg.patch[1], q=self.cfg.patch[2]
        )
        return velocity, remembered

    def embed_text(self, text: Tensor) -> Tensor:
        """Text [B, L, D] for cross-attention from token ids [B, L] or embeddings [B, L, text width]."""
        return self.text_embedding(self.text_table(text) if self.cfg.text_vocabulary else text)

    def rope_table(self, device: torch.device | str) -> Tensor:
        """Radians a unit [head_width / 2, 3] of this model's length."""
        return rope.frequencies(self.cfg.head_width, self.cfg.trained_frames, self.cfg.frames, torch.device(device))
