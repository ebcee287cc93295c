"""A narrow random Wan VAE of diffusers, and random weights in the layout of TAEHV's `taew2_1`."""

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor


def wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1]).eval()


def taew2_1() -> dict[str, Tensor]:
    """The names and shapes of the published decoder in float16, and a layer of its encoder."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int = 3, *, bias: bool = True) -> None:
        weight = torch.randn(outputs, inputs, size, size, generator=generator) / (inputs * size * size) ** 0.5
        state[f"{name}.weight"] = weight.half()
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator).half()

    conv("encoder.0", 64, 3)
    conv("decoder.1", 256, 16)
    for start, width, following, stride in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for block in range(start, start + 3):
            for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
                conv(f"decoder.{block}.conv.{layer}", width, inputs)
        conv(f"decoder.{start + 4}.conv", width * stride, width, 1, bias=False)
        conv(f"decoder.{start + 5}", following, width, bias=False)
    conv("decoder.22", 3, 64)
    return state
