"""Wan-2.1's video autoencoder, diffusers' `AutoencoderKLWan`, behind the interface of model/codec.py.

Its causal convolutions look back two inputs. diffusers keeps those on the module, which serves one video at a time;
here they belong to a stream, so that walks are decoded in turns. A stream passes pieces of one latent (frame 0, then
four frames at a time), as diffusers does: equal to its `encode` and `decode`, and beside the result no memory grows
with the length. What a stream keeps is large: at 480x832 in float32 2.1 GiB to encode and 3.5 GiB to decode, where a
stream of TAEHV's decoder keeps 0.125 GiB (tests/test_vae.py, on the meta device).
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn

from relic.model import tensors, weights
from relic.model.codec import DecoderStream, Stream, check_video
from relic.model.precision import full_precision

Features = defaultdict[int, Any]  # the number of a convolution -> its last inputs, [B, C, 1 or 2, H, W]


class WanCodec(nn.Module):
    """Frames [B, F_px, 3, H_px, W_px] in 0..1 to normalised latents [B, F, C, H, W] and back.

    A latent is the mode of the encoder's distribution, never a sample, normalised by the mean and deviation that the
    VAE's configuration publishes. `taehv` decodes in place of the VAE's own decoder, which is then not kept."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKLWan, taehv: nn.Sequential | None = None):
        super().__init__()
        self.encoder, self.quant = vae.encoder, vae.quant_conv
        self.taehv = taehv
        if taehv is None:
            self.decoder, self.post_quant = vae.decoder, vae.post_quant_conv
        device = vae.quant_conv.weight.device
        self.register_buffer("mean", torch.tensor(vae.config["latents_mean"], device=device))
        self.register_buffer("std", torch.tensor(vae.config["latents_std"], device=device))
        self.eval().requires_grad_(False)  # with a graph a stream's features would hold all that was before them

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, F, C, H, W]; F_px must be 4 (F - 1) + 1 and both sides multiples of 8."""
        check_video(frames)
        return self.encoder_stream().encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, 4 (F - 1) + 1, 3, H_px, W_px] of normalised latents; TAEHV's are not clamped to 0..1."""
        return self.decoder_stream().decode(latents)

    def encoder_stream(self) -> "EncoderStream":
        return EncoderStream(self)

    def decoder_stream(self) -> Stream:
        return WanDecoderStream(self) if self.taehv is None else DecoderStream(self.taehv)


class EncoderStream:
    """Encodes a video piece by piece, equal to encoding it whole."""

    def __init__(self, codec: WanCodec):
        self.codec = codec
        self.features: Features = defaultdict(lambda: None)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, F, C, H, W] of the next frames [B, n, 3, H_px, W_px]: n is 4 (F - 1) + 1 in the first
        call, 4 F in every other."""
        first = not self.features
        if frames.shape[1] % 4 != first:
            raise ValueError(
                f"the piece has {frames.shape[1]} frames; a video's first piece has 4n + 1, every other has 4n"
            )
        pieces = frames.split([1] * first + [4] * (frames.shape[1] // 4), 1)
        return torch.cat([self._encode(piece) for piece in pieces], 1)

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = rearrange(frames * 2 - 1, "b t c h w -> b c t h w")
        with full_precision(pixels.device):  # what a base model was trained on: latents in float32
            encoded = self.codec.encoder(pixels, feat_cache=self.features, feat_idx=[0])
            mode, _ = self.codec.quant(encoded).chunk(2, 1)  # the other half is the distribution's log-variance
        return (rearrange(mode, "b c t h w -> b t c h w") - per_channel(self.codec.mean)) / per_channel(self.codec.std)


class WanDecoderStream:
    """Decodes a video piece by piece, equal to decoding it whole.

    The first latent gives one frame, every other four."""

    def __init__(self, codec: WanCodec):
        self.codec = codec
        self.features: Features = defaultdict(lambda: None)

    def decode(self, latents: Tensor) -> Tensor:
        """The frames [B, n, 3, H_px, W_px] in 0..1 that the next latents [B, F, C, H, W] make ready."""
        return torch.cat([self._decode(latent) for latent in latents.split(1, 1)], 1)

    def _decode(self, latent: Tensor) -> Tensor:
        raw = rearrange(latent * per_channel(self.codec.std) + per_channel(self.codec.mean), "b t c h w -> b c t h w")
        pixels = self.codec.decoder(self.codec.post_quant(raw), feat_cache=self.features, feat_idx=[0])
        return rearrange(pixels.clamp(-1, 1) / 2 + 0.5, "b c t h w -> b t c h w")

    def branch(self) -> "WanDecoderStream":
        made = WanDecoderStream(self.codec)
        made.features.update(self.features)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """An empty tensor stands for diffusers' word "Rep", of a layer that has seen one latent only."""
        known = self.features.copy()  # another thread may decode meanwhile
        found = {layer: torch.zeros(0) if isinstance(x, str) else x for layer, x in known.items() if x is not None}
        return {str(layer): x for layer, x in found.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.features.update({int(layer): x if x.numel() else "Rep" for layer, x in tensors.items()})


def per_channel(values: Tensor) -> Tensor:
    return rearrange(values, "c -> c 1 1")


def load(file: Path, device: torch.device | str = "cpu", *, taehv: Path | None = None) -> WanCodec:
    """The VAE of a diffusers folder's weights, in float32 as it is published; the decoder in `taehv`, a file, takes
    the place of its own."""
    folder = file.parent
    if not file.is_file():
        raise ValueError(f"{folder} holds no {file.name}; a diffusers VAE's folder has config.json and {file.name}")
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder))
    if vae.config["patch_size"] is not None or vae.config["is_residual"]:
        raise ValueError(f"{folder} holds Wan-2.2's VAE, 16x16 pixels a latent; Wan-2.1's, 8x8 pixels, is allowed")
    vae.to_empty(device=device)
    weights.load_state(vae.state_dict(), tensors.places([file]), file)
    return WanCodec(vae, weights.load_taehv(taehv, device) if taehv else None)
