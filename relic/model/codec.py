"""The small causal video codec: F_px = 4 (F - 1) + 1 frames in, F latents out, 8x smaller in space.

Frame 0 stands alone: it is repeated three times in front, so that the first latent sees nothing later. The encoder is
one linear layer a patch of 4 frames x 8 x 8 pixels, meant for the patches' principal components (train/codec.py): on
small pictures they keep more after a second than a convolutional encoder learns in an hour on two cores. The decoder
has TAEHV's layer layout (github.com/madebyollin/taehv), so that its published weights (`taew2_1`) fit when the widths
do (`weights.load_taehv`); it makes 4 F frames and the first three are dropped. Every layer that looks back in time
looks at its own previous input only, so a stream is decoded by handing that input from call to call: whole decoding is
a stream of one call.
"""

import math
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.model import config

PATCH = (4, 8, 8)  # frames, rows and columns of pixels that a latent stands for
Memories = dict[int, Tensor]  # layer index -> the last input of that layer, [B, 1, C, H, W]


class Stream(Protocol):
    """A video that is decoded piece by piece, equal to decoding it whole; streams of one codec take turns freely."""

    def decode(self, latents: Tensor) -> Tensor:
        """The frames [B, n, 3, H_px, W_px] that the next latents [B, F, C, H, W] make ready."""
        ...

    def branch(self) -> "Stream":
        """A stream that goes on from here on its own."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered of the latents before."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Remembers what the stream does whose `tensors` these are."""
        ...


class VideoCodec(Protocol):
    """What the steps ask of a codec: this file's, or Wan-2.1's (pretrained/vae.py)."""

    mean: Tensor  # [C], of the latents before normalisation; its device is the codec's

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, F, C, H, W] of frames [B, 4 (F - 1) + 1, 3, H_px, W_px] in 0..1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, 4 (F - 1) + 1, 3, H_px, W_px] of normalised latents."""
        ...

    def decoder_stream(self) -> Stream: ...


def check_video(frames: Tensor) -> None:
    """Refuses frames [B, F_px, 3, H_px, W_px] that are not 4 (F - 1) + 1 with sides divisible by 8."""
    count, height, width = frames.shape[1], *frames.shape[-2:]
    if count % 4 != 1 or height % 8 or width % 8:
        raise ValueError(
            f"the video has {count} frames of {height}x{width}; the codec takes 4n + 1 frames, sides divisible by 8"
        )


def conv3(inputs: int, outputs: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """A residual block that sees its input and the input one time step before."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        relu = nn.ReLU()
        self.conv = nn.Sequential(
            conv3(inputs * 2, outputs), relu, conv3(outputs, outputs), relu, conv3(outputs, outputs)
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return functional.relu(self.conv(torch.cat([x, past], 1)) + self.skip(x))


class TGrow(nn.Module):
    """Unfolds one time step into `stride`."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv(x), "n (s c) h w -> (n s) c h w", s=self.stride)


def initialise(layer: nn.Module) -> None:
    """Keeps the signal's variance through all layers of the decoder, where torch's default lets it vanish."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layer, MemBlock):  # applied after its own layers: a block begins as its skip path
        nn.init.zeros_(layer.conv[-1].get_parameter("weight"))


def decoder(cfg: config.Codec) -> nn.Sequential:
    widths = cfg.decoder_widths
    layers: list[nn.Module] = [Clamp(), conv3(cfg.latent_channels, widths[0]), nn.ReLU()]
    for width, following, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
        layers += [MemBlock(width, width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TGrow(width, stride), conv3(width, following, bias=False)]
    last = conv3(widths[3], 3)
    made = nn.Sequential(*layers, nn.ReLU(), last).apply(initialise)
    nn.init.normal_(last.weight, std=0.01)  # it begins in grey: a large first error would kill the ReLUs
    nn.init.constant_(last.get_parameter("bias"), 0.3)
    return made


def apply_in_time(layers: nn.Sequential, x: Tensor, memories: Memories) -> Tensor:
    """Runs `layers` over [B, T, C, H, W]; `memories` holds what the next call needs and is updated in place."""
    batch = len(x)
    x = rearrange(x, "b t c h w -> (b t) c h w")
    for index, layer in enumerate(layers):
        if isinstance(layer, MemBlock):
            frames = rearrange(x, "(b t) c h w -> b t c h w", b=batch)
            before = memories[index] if index in memories else torch.zeros_like(frames[:, :1])
            memories[index] = frames[:, -1:].clone()  # a view would keep the whole piece
            past = torch.cat([before, frames[:, :-1]], 1)
            x = layer(x, rearrange(past, "b t c h w -> (b t) c h w"))
        else:
            x = layer(x)
    return rearrange(x, "(b t) c h w -> b t c h w", b=batch)


def patches(frames: Tensor) -> Tensor:
    """Patches [B, F, H, W, 4 * 3 * 8 * 8] of frames [B, F_px, 3, H_px, W_px], frame 0 repeated three times in front."""
    padded = torch.cat([frames[:, :1].expand(-1, PATCH[0] - 1, -1, -1, -1), frames], 1)
    return rearrange(padded, "b (f s) c (h p) (w q) -> b f h w (s c p q)", s=PATCH[0], p=PATCH[1], q=PATCH[2])


class Codec(nn.Module):
    """Frames [B, F_px, 3, H_px, W_px] in 0..1 to normalised latents [B, F, C, H, W] and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: config.Codec):
        super().__init__()
        self.cfg = cfg
        self.encoder = nn.Linear(math.prod(PATCH) * 3, cfg.latent_channels)
        self.decoder = decoder(cfg)
        self.register_buffer("mean", torch.zeros(cfg.latent_channels))
        self.register_buffer("std", torch.ones(cfg.latent_channels))

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, F, C, H, W]; F_px must be 4 (F - 1) + 1 and both sides multiples of 8."""
        check_video(frames)
        return self.normalise(self.encode_raw(frames))

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Latents [B, F, C, H, W] before normalisation."""
        return rearrange(self.encoder(patches(frames)), "b f h w c -> b f c h w")

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, 4 (F - 1) + 1, 3, H_px, W_px] of normalised latents; not clamped to 0..1."""
        return self.decoder_stream().decode(latents)

    def decoder_stream(self) -> "DecoderStream":
        return DecoderStream(self.decoder)

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.mean[:, None, None]) / self.std[:, None, None]


class DecoderStream:
    """Decodes a video piece by piece, equal to decoding it whole.

    The first latent gives one frame, every other four.
    """

    def __init__(self, layers: nn.Sequential):
        self.layers = layers
        self.memories: Memories = {}

    def decode(self, latents: Tensor) -> Tensor:
        """The frames [B, n, 3, H_px, W_px] that the next latents [B, F, C, H, W] make ready."""
        first = not self.memories
        frames = apply_in_time(self.layers, latents, self.memories)
        return frames[:, 3:] if first else frames

    def branch(self) -> "DecoderStream":
        made = DecoderStream(self.layers)
        made.memories = dict(self.memories)  # whose tensors are replaced, never changed
        return made

    def tensors(self) -> dict[str, Tensor]:
        return {str(layer): x for layer, x in self.memories.copy().items()}  # another thread may decode meanwhile

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.memories = {int(layer): x for layer, x in tensors.items()}
