"""Our transformer beside diffusers' WanTransformer3DModel: seconds and peak memory, both in one run.

    python benchmarks/transformer.py --json
    python benchmarks/transformer.py --device cuda --compile --json figures.json

A pair is one call of ours and one of theirs, in turns the first; a ratio is ours / theirs, its median over the pairs.
Our control paths are off: their last layers are zero, as in a new model, and frozen, as Wan has none. Ours gets a
timestep a latent, theirs one a video, which is the cheaper for it. float32 on a CPU, bfloat16 autocast on CUDA. Peak
memory is that of forward and backward with the gradients, above the weights: what the allocator hands out on CUDA, the
bytes of all tensors on a CPU.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from einops import rearrange
from measure import hardware, peak_bytes, seconds
from torch import Tensor, nn

from relic.model import config
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer

TEXT_TOKENS, TEXT_WIDTH = 512, 4096  # umT5's
CUDA_LATENTS = (21, 60, 104)  # five seconds at 480x832


@dataclass(frozen=True, kw_only=True)
class Size:
    name: str
    width: int
    ffn: int
    heads: int
    layers: int
    latents: tuple[int, int, int]  # latent frames, rows, columns on a CPU


SIZES = (
    Size(name="narrow", width=256, ffn=1024, heads=4, layers=4, latents=(5, 32, 48)),
    Size(name="middle", width=512, ffn=2048, heads=8, layers=4, latents=(5, 24, 40)),
    Size(name="two layers of 1.3B", width=1536, ffn=8960, heads=12, layers=2, latents=(5, 16, 24)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one size takes."""

    name: str
    tokens: int
    forward_s: tuple[float, float]  # ours, theirs
    train_s: tuple[float, float]
    peak_bytes: tuple[int, int]
    ratio_forward: float
    ratio_train: float
    ratio_peak_memory: float


@dataclass(frozen=True)
class Contender:
    """A model and what calls it once."""

    model: nn.Module
    run: Callable[[], Tensor]

    def forward(self) -> None:
        with torch.no_grad():
            self.run()

    def train(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.run().float().square().mean().backward()


def contenders(size: Size, device: torch.device, compiled: bool) -> tuple[Contender, Contender]:
    """Ours and theirs."""
    frames, rows, columns = latents_of(size, device)
    cfg = config.Transformer(
        width=size.width, ffn=size.ffn, heads=size.heads, layers=size.layers, text_tokens=TEXT_TOKENS,
        text_width=TEXT_WIDTH, text_vocabulary=0, trained_frames=21, frames=21,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        ours = Transformer(cfg)
        theirs: Any = WanTransformer3DModel(
            num_attention_heads=cfg.heads, attention_head_dim=cfg.head_width, ffn_dim=cfg.ffn, num_layers=cfg.layers,
            text_dim=TEXT_WIDTH,
        )  # fmt: skip
        latents = torch.randn(1, frames, cfg.latent_channels, rows, columns)
        poses = torch.eye(4).expand(1, 4 * frames - 3, 4, 4)
        conditions = Conditions(torch.zeros(1, 4 * frames - 3, 13), poses, torch.randn(1, TEXT_TOKENS, TEXT_WIDTH))
        each, one = torch.full((1, frames), 500.0), torch.full((1,), 500.0)
    nn.init.normal_(ours.head.weight, std=size.width**-0.5)  # zero as it is made
    ours.action_encoder.requires_grad_(False)
    ours.pose_encoder.requires_grad_(False)
    if compiled:
        ours.compile()
        theirs.compile()
    latents_there = rearrange(latents, "b f c h w -> b c f h w").contiguous()

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def run_ours() -> Tensor:
        with autocast():
            return ours(latents, each, conditions)[0]

    def run_theirs() -> Tensor:
        with autocast():
            return theirs(latents_there, one, conditions.text, return_dict=False)[0]

    return Contender(ours, run_ours), Contender(theirs, run_theirs)


def latents_of(size: Size, device: torch.device) -> tuple[int, int, int]:
    return CUDA_LATENTS if device.type == "cuda" else size.latents


def measure(size: Size, device: torch.device, *, compiled: bool, pairs: int) -> Row:
    both = contenders(size, device, compiled)
    forward, train = [], []
    for number in range(-1, pairs):
        forward_s, train_s = {}, {}
        for one in both if number % 2 else both[::-1]:
            forward_s[one], train_s[one] = seconds(one.forward, device), seconds(one.train, device)
        if number >= 0:  # the first warms up
            forward.append([forward_s[one] for one in both])
            train.append([train_s[one] for one in both])
    peaks = []
    for one in both:
        for other in both:
            other.model.zero_grad(set_to_none=True)
        peaks.append(peak_bytes(one.train, device))  # the same at every call
    return Row(
        name=size.name,
        tokens=math.prod(latents_of(size, device)) // 4,
        forward_s=middle(forward),
        train_s=middle(train),
        peak_bytes=(peaks[0], peaks[1]),
        ratio_forward=statistics.median(ours / theirs for ours, theirs in forward),
        ratio_train=statistics.median(ours / theirs for ours, theirs in train),
        ratio_peak_memory=peaks[0] / peaks[1],
    )


def middle(pairs: list[list[float]]) -> tuple[float, float]:
    """Medians of ours and of theirs."""
    return statistics.median(ours for ours, _ in pairs), statistics.median(theirs for _, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="both by torch.compile")
    parser.add_argument("--pairs", type=int, default=9, help="at least 5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args()
    if given.pairs < 5:
        parser.error(f"--pairs is {given.pairs}; a median needs at least 5")
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print(
        "| size | tokens | forward s, ours / theirs | with backward s | peak MiB | ratios |\n|---|---|---|---|---|---|"
    )
    rows = []
    for size in SIZES:
        row = measure(size, device, compiled=given.compile, pairs=given.pairs)
        rows.append(row)
        print(
            f"| {row.name} | {row.tokens} | {row.forward_s[0]:.3f} / {row.forward_s[1]:.3f} "
            f"| {row.train_s[0]:.3f} / {row.train_s[1]:.3f} "
            f"| {row.peak_bytes[0] / 2**20:.0f} / {row.peak_bytes[1] / 2**20:.0f} "
            f"| {row.ratio_forward:.3f}, {row.ratio_train:.3f}, {row.ratio_peak_memory:.3f} |",
            flush=True,
        )
    if given.json:
        facts = {"hardware": hardware(device), "threads": given.threads, "compile": given.compile, "pairs": given.pairs}
        given.json.write_text(
            json.dumps({**facts, "torch": torch.__version__, "sizes": list(map(asdict, rows))}) + "\n"
        )


if __name__ == "__main__":
    main()
