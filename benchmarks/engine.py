"""The serving engine: what a chunk takes, in which precision, compiled or not, as CUDA graphs or not.

    python benchmarks/engine.py --json
    python benchmarks/engine.py --device cuda --recipe wan_1b --json figures.json

A walk as `relic serve` steps it (relic/serve/engine.py), without the network, of a recipe's size with random weights.
It is measured where its memory is full, for a whole cycle of the memory's schedule, all settings in turns; settings
with compiled functions after the others, for those are compiled for the process. `first_picture_ms` is from the call to
the first latent's pictures on the host, `chunk_ms` to where the next chunk may begin.

On a CPU "fp8" is emulated, so its speed says nothing about a GPU's; what it keeps is the same. `quality` there: the
pictures of a walk by the shipped base in FP8 (memory, linears, both) beside those of the same walk in bfloat16, PSNR in
dB. On CUDA `linears` and `attention` are one layer's products at the recipe's sizes, by each way there is.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import facts, random_text, random_transformer, seconds, write
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from relic import recipes
from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS
from relic.geometry.config import Actions
from relic.model import fp8, weights
from relic.model.codec import Codec
from relic.model.transformer import Transformer
from relic.pretrained import words
from relic.serve import engine
from relic.serve.world import World
from relic.worlds import rooms
from relic.worlds.config import Rooms


@dataclass(frozen=True, kw_only=True)
class Setting:
    linears: str  # of the blocks: "fp8" or "bf16"
    memory: str  # "fp8" or "bf16"
    fused: bool = False
    graphs: bool = False
    chunk: int  # latents
    steps: int  # passes of denoising
    context: str = "clean"


@dataclass(frozen=True, kw_only=True)
class Row(Setting):
    chunk_ms: float
    slowest_ms: float
    first_picture_ms: float
    decode_ms: float
    frames_per_s: float
    tokens: int  # seen by a chunk, in the mean
    memory_bytes: int  # of one walk
    context_bytes: int  # of all walks
    weights_bytes: int
    warm_s: float  # until nothing is compiled or captured any more


def settings_of(rollout: Rollout, steps: int, device: torch.device) -> list[Setting]:
    usual = Setting(linears="bf16", memory="bf16", chunk=rollout.chunk, steps=steps)
    fp8_all = replace(usual, linears="fp8", memory="fp8")
    if device.type == "cpu":
        return [usual, replace(usual, memory="fp8"), fp8_all, replace(fp8_all, context="noisy")]
    fast = replace(fp8_all, fused=True, graphs=True)
    return [
        usual, replace(usual, memory="fp8"), fp8_all, replace(fp8_all, graphs=True),
        replace(usual, fused=True), replace(usual, fused=True, graphs=True), replace(fp8_all, fused=True), fast,
        replace(fast, context="noisy"), replace(fast, chunk=2), replace(fast, chunk=1),
        replace(fast, chunk=1, context="noisy"),
    ]  # fmt: skip


class Walking:
    """A student of a setting, and one walk of it whose memory is full."""

    def __init__(self, setting: Setting, model: Transformer, codec: Codec, rollout: Rollout, shape: tuple[int, ...]):
        began, device = time.perf_counter(), codec.mean.device
        steps = rollout.timesteps[:: max(1, len(rollout.timesteps) // setting.steps)][: setting.steps]
        cfg = replace(
            rollout, chunk=setting.chunk, timesteps=steps, context=setting.context,
            memory=replace(rollout.memory, dtype=setting.memory),
        )  # fmt: skip
        self.setting = setting
        own = rounded(model, setting.linears, device)
        world = World("random", 8 * shape[-2], 8 * shape[-1], 16.0, {}, (), {})
        self.student = engine.Student(
            own, codec, cfg, words=no_words, unit=Actions(), world=world, device=device
        )  # fmt: skip
        if device.type == "cuda":
            engine.make_fast(self.student, compile=setting.fused, replay=setting.graphs)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, *shape, generator=generator).to(device)
        self.walk = self.student.begin(image, random_text(own.cfg, device), 0)
        with torch.inference_mode():
            while self.walk.rollout.num_latents < cfg.memory.capacity:
                actions = moving(self.walk.num_actions)
                given = torch.from_numpy(actions).float()[None].to(device)
                self.walk.rollout.see(given, torch.randn(1, cfg.chunk, *shape, generator=generator).to(device))
        self.cycle = math.lcm(len(cfg.memory.schedule), cfg.chunk) // cfg.chunk + 1
        for _ in range(self.cycle):
            self.step()
        self.warm_s = time.perf_counter() - began
        self.times: list[tuple[float, float, float, int]] = []

    def step(self) -> tuple[float, float, float, int]:
        """Seconds to the first pictures and to the end, the codec's, and the tokens that were seen."""
        actions, began, first = moving(self.walk.num_actions), time.perf_counter(), 0.0
        for _ in self.walk.step(actions):
            first = first or time.perf_counter() - began
        if self.student.device.type == "cuda":
            torch.cuda.synchronize(self.student.device)
        return first, time.perf_counter() - began, self.walk.decode_s, self.walk.rollout.context.used

    def measure(self) -> None:
        self.times.append(self.step())

    def row(self) -> Row:
        first, whole, decode, tokens = map(list, zip(*self.times, strict=True))
        context = self.walk.rollout.context
        return Row(
            **asdict(self.setting),
            chunk_ms=1e3 * statistics.median(whole),
            slowest_ms=1e3 * max(whole),
            first_picture_ms=1e3 * statistics.median(first),
            decode_ms=1e3 * statistics.median(decode),
            frames_per_s=self.walk.num_actions / statistics.median(whole),
            tokens=round(statistics.mean(tokens)),
            memory_bytes=self.walk.rollout.memory.num_bytes,
            context_bytes=context.keys.nbytes + context.values.nbytes,
            weights_bytes=sum(x.nbytes for x in self.student.model.state_dict().values()),
            warm_s=self.warm_s,
        )


def no_words(captions: list[str]) -> Tensor:
    raise AssertionError("a random model reads random text")


def moving(count: int) -> np.ndarray:
    actions = np.zeros((count, len(ACTIONS)))
    actions[:, ACTIONS.index("dolly_in")] = 1
    return actions


def rounded(model: Transformer, linears: str, device: torch.device) -> Transformer:
    """A copy of the model whose blocks' linears are in FP8 or bfloat16 (float32 where a CPU has none)."""
    made = weights_copied(model)
    if linears == "fp8":
        fp8.quantise(made)
        fp8.make_ready(made, device)
    elif device.type == "cuda":
        for linear in fp8.linears(made, nn.Linear).values():
            linear.bfloat16()
    return made.requires_grad_(False).eval()


def weights_copied(model: Transformer) -> Transformer:
    with torch.device("meta"):
        made = Transformer(model.cfg)
    made.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    return made


def measure(recipe: Any, device: torch.device, settings: list[Setting], cycles: int) -> Iterator[Row]:
    rollout, model_cfg = recipe.distill.rollout, recipe.teacher.model
    model = random_transformer(model_cfg, device)
    torch.manual_seed(0)
    codec = Codec(recipe.codec.model).to(device).eval()
    shape = (model_cfg.latent_channels, recipe.curate.height // 8, recipe.curate.width // 8)
    for fused in (False, True):
        for settings_at_once in grouped([setting for setting in settings if setting.fused == fused]):
            walkings = [Walking(setting, model, codec, rollout, shape) for setting in settings_at_once]
            for _ in range(cycles):
                for walking in walkings:
                    for _ in range(max(3, walking.cycle // 2)):
                        walking.measure()
            yield from (walking.row() for walking in walkings)


def grouped(settings: list[Setting]) -> Iterator[list[Setting]]:
    """As many as fit a GPU at once, measured in turns."""
    yield from (settings[start : start + 4] for start in range(0, len(settings), 4))


# --- on CUDA: one layer's products ----------------------------------------------------------------------------------


def linear_ways(inputs: int, outputs: int, tokens: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The same layer by each way: bfloat16, torch._scaled_mm as relic/model/fp8.py calls it, torchao where it is
    installed. Compiled, for the rounding of the input is many small kernels otherwise."""
    x = torch.randn(1, tokens, inputs, device=device, dtype=torch.bfloat16)
    linear = nn.Linear(inputs, outputs, device=device).requires_grad_(False)
    ours, plain = fp8.Fp8Linear(linear), nn.Linear(inputs, outputs, device=device, dtype=torch.bfloat16)
    ways: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: plain(x), "scaled_mm": lambda: ours(x), "scaled_mm compiled": lambda: compiled(x)
    }  # fmt: skip
    compiled = torch.compile(ours)
    if find_spec("torchao"):
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

        theirs = nn.Sequential(nn.Linear(inputs, outputs, device=device, dtype=torch.bfloat16))
        quantize_(theirs, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
        compiled_theirs = torch.compile(theirs)
        ways |= {"torchao": lambda: theirs(x), "torchao compiled": lambda: compiled_theirs(x)}
    return ways


def attention_ways(tokens: int, seen: int, heads: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    q = torch.randn(1, tokens, heads, 128, device=device, dtype=torch.bfloat16).transpose(1, 2)
    k, v = (torch.randn(1, seen, heads, 128, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))

    def by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v)

    ways = {
        "default": lambda: functional.scaled_dot_product_attention(q, k, v),
        "flash": lambda: by(SDPBackend.FLASH_ATTENTION), "cudnn": lambda: by(SDPBackend.CUDNN_ATTENTION),
    }  # fmt: skip
    return ways


def timed(ways: dict[str, Callable[[], Tensor]], device: torch.device, rounds: int = 20) -> dict[str, float]:
    """Milliseconds of each, medians, in turns; as CUDA graphs, so that the host's part does not count."""
    graphs = {}
    for name, call in ways.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize(device)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            call()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, graph in graphs.items():
            taken[name].append(1e3 * seconds(graph.replay, device))
    return {name: round(statistics.median(times), 4) for name, times in taken.items()}


@torch.inference_mode()
def products(recipe: Any, device: torch.device) -> dict[str, Any]:
    model, rollout = recipe.teacher.model, recipe.distill.rollout
    rows, columns = recipe.curate.height // 16, recipe.curate.width // 16
    tokens, found = rollout.chunk * rows * columns, {}
    seen = tokens + rollout.memory.tokens(rows, columns, rollout.memory.capacity, rollout.chunk)
    for inputs, outputs in ((model.width, model.width), (model.width, model.ffn), (model.ffn, model.width)):
        name = f"linear {tokens} x {inputs} -> {outputs}"
        found[name] = timed(linear_ways(inputs, outputs, tokens, device), device)
    name = f"attention {tokens} x {seen}, {model.heads} heads"
    found[name] = timed(attention_ways(tokens, seen, model.heads, device), device)
    return found


# --- on a CPU: what FP8 costs in quality ----------------------------------------------------------------------------


def quality(num_frames: int) -> list[dict[str, float | str]]:
    """PSNR in dB of the shipped base's walk in FP8 against the same in bfloat16, by seconds walked."""
    recipe, device = recipes.named("tiny"), torch.device("cpu")
    base = weights.load_transformer(weights.start_folder("tiny/base"))
    codec = weights.load_codec(weights.start_folder("tiny/codec")).eval()
    recording = next(rooms.record(Rooms(), region="known", seed=0, num_clips=1, num_frames=5))

    def walked(linears: str, memory: str) -> np.ndarray:
        cfg = replace(recipe.distill.rollout, memory=replace(recipe.distill.rollout.memory, dtype=memory))
        world = World("tiny", recipe.curate.height, recipe.curate.width, 16.0, {}, (), {})
        said = words.of(base.cfg, "", device)
        model = rounded(base, linears, device)
        student = engine.Student(model, codec, cfg, words=said, unit=Actions(), world=world, device=device)
        walk, frames = student.open(recording.frames[0], "", 0), list[np.ndarray]()
        while sum(len(made) for made in frames) < num_frames:
            frames += [made for made, _ in walk.step(moving(walk.num_actions))]
        return np.concatenate(frames)[:num_frames].astype(np.float64)

    wanted, rows = walked("bf16", "bf16"), []
    for linears, memory in (("bf16", "fp8"), ("fp8", "bf16"), ("fp8", "fp8"), ("bf16", "fp32")):
        error = ((walked(linears, memory) - wanted) ** 2).mean((1, 2, 3))[1:]
        found: dict[str, float | str] = {"linears": linears, "memory": memory}
        for second in (1, 2, 4, 8):
            if 16 * second <= num_frames - 1:
                found[f"psnr_{second}s_db"] = round(
                    float(10 * np.log10(255**2 / max(1e-5, error[: 16 * second].mean()))), 2
                )
        rows.append(found)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=0, help="passes of denoising; 0: the recipe's")
    parser.add_argument("--cycles", type=int, default=2, help="half cycles of the memory's schedule")
    parser.add_argument(
        "--only",
        type=int,
        nargs="*",
        help="the settings of these numbers, from 0; none: the products or the quality alone",
    )
    parser.add_argument("--frames", type=int, default=129, help="of the walks whose quality is compared, on a CPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe, device = recipes.named(given.recipe), torch.device(given.device)
    steps = given.steps or len(recipe.distill.rollout.timesteps)
    settings = settings_of(recipe.distill.rollout, steps, device)
    if given.only is not None:
        settings = [settings[number] for number in given.only]
    columns = "linears, memory, fused, graphs, chunk, context, chunk ms, first picture ms, frames/s, memory MiB"
    print(f"| {columns.replace(', ', ' | ')} |\n{'|---' * 10}|")
    rows = []
    for row in measure(recipe, device, settings, given.cycles):
        rows.append(row)
        print(
            f"| {row.linears} | {row.memory} | {row.fused} | {row.graphs} | {row.chunk} | {row.context} "
            f"| {row.chunk_ms:.1f} | {row.first_picture_ms:.1f} | {row.frames_per_s:.1f} "
            f"| {row.memory_bytes / 2**20:.1f} |", flush=True,
        )  # fmt: skip
    about = {**facts(device), "recipe": given.recipe}
    if device.type == "cuda":
        about["products_ms"] = products(recipe, device)
    else:
        about["quality"] = quality(given.frames)
    for name in ("products_ms", "quality"):
        print(about.get(name, ""))
    if given.json:
        write(given.json, about, rows)


if __name__ == "__main__":
    main()
