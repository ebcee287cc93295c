"""The student's large linear layers in FP8: weights in E4M3, one scale for each output channel.

RELIC serves its cache and its attention in FP8 (section 4.5); the linear layers are more than half of a pass's work.

The idea. A linear layer is y = x W^T + b, W [outputs, inputs]. Row o of W is kept as E4M3 numbers Q and one float32 s:
W[o] = s[o] Q[o], with s[o] such that the row's largest entry becomes 448, the largest number of E4M3. Three bits of
mantissa bound the rounding of an entry by 2^-4 of itself; below 2^-6 s[o], some 2^-15 of the row's largest, the steps
are even, s[o] 2^-9.

Why a scale for each output. It multiplies a whole column of the result, so it leaves the product: y[:, o] =
s[o] (x Q^T)[:, o]. A scale for each input would stand inside the sum and had to be multiplied into x first. One for
the whole matrix would be enough for the mantissa, but a row 2^-15 below the largest would vanish.

Two ways to compute, chosen by `make_ready`:

- A GPU of capability 8.9 or more multiplies E4M3 by E4M3. The input gets a scale for each token, found at run time (no
  calibration, no outlier of one token costs another its precision), and the product is scaled by rows and columns:

      x [tokens, inputs] = t[token] P      y[token, o] = t[token] s[o] (P Q^T)[token, o] + b[o]

- Elsewhere the weights are multiplied out once, when they are loaded, into what autocast computes in. That saves no
  memory, but the model is the same rounded one, and autocast has no weights of the blocks left to convert.

Only the blocks' linears are rounded: nearly all of the parameters, each used once a token. The embeddings, the
modulation, the control paths and the head are small, and their errors would reach every block; they stay as they are.

From outside: `quantise` replaces layers of a plain model, whose `forward` knows nothing of it. The state_dict of the
model so changed is the file of an export, tensor by tensor: NAME.weight in E4M3, NAME.scale [outputs, 1], NAME.bias.
"""

from typing import Any

import torch
from torch import Tensor, nn

from relic.memory.store import fp8_scale
from relic.model.precision import native_bfloat16
from relic.model.transformer import Transformer

FIRST_CAPABILITY = (8, 9)  # Ada; then Hopper
TILE = 16  # torch._scaled_mm takes matrices whose sides divide by this


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 numbers [..., N] of x [..., N], and the scale [..., 1] of each row: x is about their product."""
    scale = fp8_scale(x.float())
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


class Fp8Linear(nn.Module):
    """A linear layer that multiplies E4M3 by E4M3 and gives bfloat16."""

    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = to_fp8(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [outputs, inputs]
        self.register_buffer("scale", scale)  # [outputs, 1]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] to bfloat16 [..., outputs]."""
        tokens, scale = to_fp8(x.flatten(0, -2))
        y = torch._scaled_mm(
            tokens, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), bias=self.bias.bfloat16(),
            out_dtype=torch.bfloat16,
        )  # fmt: skip
        return y.unflatten(0, x.shape[:-1])

    def multiplied_out(self, dtype: torch.dtype) -> nn.Linear:
        """The plain layer with the rounded weights."""
        plain = nn.Linear(self.weight.shape[1], self.weight.shape[0], device="meta")
        plain.weight = nn.Parameter((self.weight.float() * self.scale).to(dtype), requires_grad=False)
        plain.bias = nn.Parameter(self.bias.detach().to(dtype), requires_grad=False)
        return plain


def quantise(model: Transformer) -> None:
    """Replaces every linear layer of the blocks by its `Fp8Linear`."""
    for name, linear in linears(model, nn.Linear).items():
        model.set_submodule(name, Fp8Linear(linear))


def make_ready(model: Transformer, device: torch.device) -> str:
    """Lets a quantised model compute on its device; says in a few words which of the two ways it takes."""
    layers = linears(model, Fp8Linear)
    fits = all(side % TILE == 0 for layer in layers.values() for side in layer.weight.shape)
    if fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY:
        return "FP8"
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    for name, layer in layers.items():
        model.set_submodule(name, layer.multiplied_out(dtype))
    return f"FP8 weights in {str(dtype).removeprefix('torch.')}"


def linears(model: Transformer, kind: type[nn.Module]) -> dict[str, Any]:
    """The blocks' layers of a kind, by their names in the model."""
    return {f"blocks.{name}": layer for name, layer in model.blocks.named_modules() if isinstance(layer, kind)}
