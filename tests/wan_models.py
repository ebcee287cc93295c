"""Random Wan transformers of diffusers, and the same weights in ours."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from relic.model import config
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.model.wan import CONTROL, name_in, ours


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
    for name in own:
        if not name.startswith(CONTROL):
            own[name] = ours(name, state[name_in("diffusers", name)], cfg)
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
