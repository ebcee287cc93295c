"""Random Wan transformers of diffusers, and the same weights in ours."""

import re
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor

from relic.model import config
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer

STEMS = (  # ours, diffusers'
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection", "condition_embedder.time_proj"),
    ("head", "proj_out"),
    ("head_modulation", "scale_shift_table"),
)
BLOCK = (
    *((f"attention.to_{x}", f"attn1.to_{x}") for x in "qkv"),
    ("attention.to_out", "attn1.to_out.0"),
    *((f"attention.norm_{x}", f"attn1.norm_{x}") for x in "qk"),
    *((f"cross_attention.to_{x}", f"attn2.to_{x}") for x in "qkv"),
    ("cross_attention.to_out", "attn2.to_out.0"),
    *((f"cross_attention.norm_{x}", f"attn2.norm_{x}") for x in "qk"),
    ("cross_norm", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
)


def name_there(ours: str) -> str:
    """diffusers' name of a tensor of ours that is Wan's."""
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", ours)
    prefix, rest = (block[1], block[2]) if block else ("", ours)
    here, there = next(row for row in (BLOCK if block else STEMS) if rest == row[0] or rest.startswith(f"{row[0]}."))
    return prefix + there + rest.removeprefix(here)


def ours(name: str, x: Tensor, cfg: config.Transformer) -> Tensor:
    """A tensor of diffusers', or its gradient, in our layout."""
    if name.startswith("head."):
        return rearrange(x, "(p q c) ... -> (c p q) ...", p=cfg.patch[1], q=cfg.patch[2]).contiguous()
    if name == "patch_embedding.weight":
        return x.flatten(1)
    return x[0] if name.endswith("modulation") else x


def is_wans(name: str) -> bool:
    return not name.startswith(("action_encoder.", "pose_encoder."))


def wan(cfg: config.Transformer, seed: int = 0) -> Any:
    """A Wan in which no weight is zero and every one matters."""
    torch.manual_seed(seed)
    model: Any = WanTransformer3DModel(
        patch_size=cfg.patch,
        num_attention_heads=cfg.heads,
        attention_head_dim=cfg.head_width,
        in_channels=cfg.latent_channels,
        out_channels=cfg.latent_channels,
        text_dim=cfg.text_width,
        freq_dim=cfg.frequency_width,
        ffn_dim=cfg.ffn,
        num_layers=cfg.layers,
    )
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, 1, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2)
    return model.eval()


def relic(cfg: config.Transformer, theirs: Any) -> Transformer:
    """The same Wan as a Transformer of ours, its control paths new."""
    model, state = Transformer(cfg), theirs.state_dict()
    own = model.state_dict()
    own |= {name: ours(name, state[name_there(name)], cfg) for name in own if is_wans(name)}
    model.load_state_dict(own)
    return model.eval()


def conditions(cfg: config.Transformer, num_latents: int, *, batch: int = 1, seed: int = 0) -> Conditions:
    """Actions and poses of 4 (F - 1) + 1 frames and umT5-like embeddings."""
    generator = torch.Generator().manual_seed(seed)
    num_frames = 4 * (num_latents - 1) + 1
    poses = torch.eye(4).repeat(batch, num_frames, 1, 1)
    poses[..., :3, 3] = torch.randn(batch, num_frames, 3, generator=generator)
    actions = torch.rand(batch, num_frames, 13, generator=generator)
    text = torch.randn(batch, cfg.text_tokens, cfg.text_width, generator=generator)
    return Conditions(actions, poses, text)
