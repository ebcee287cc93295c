"""Walks there and back, and one model trained on them for all policies of the memory: each step under the next policy,
so that weights, data and budget are the same. The recipes of benchmarks/memory.py."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relic.data.encode import controls
from relic.generate.config import Rollout
from relic.geometry.config import Actions
from relic.memory.config import Memory
from relic.model import config, weights
from relic.model.codec import Codec
from relic.model.conditions import PADDING, Conditions
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.train import optimizer
from relic.train.checkpoint import Checkpoints
from relic.train.codec import as_batch
from relic.train.config import Checkpointing, Optimizer
from relic.train.draws import Draws
from relic.train.remembering import remembered_loss
from relic.worlds.config import Doom, Rooms

EXACT = Actions(translation_dead_zone=1e-6, rotation_dead_zone=1e-6)  # else a walk back would not close


# a latent has 4x6 tokens: pooled by 2 a quarter of them stay, by 4 there are 2
MEMORY = Memory(window=4, capacity=36, schedule=(1,) + (2,) * 35, weigh_pooled=True, dtype="fp32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model, trained under all memories in turn, and the walks it is measured on."""

    name: str
    model: config.Transformer = field(default_factory=config.Transformer)
    start: str = "tiny/base"  # weights that the training starts from; empty: from nothing
    codec: str = "tiny/codec"
    worlds: dict[str, Doom | Rooms] = field(
        # turning faster than usual, the camera leaves a view within seconds
        default_factory=lambda: {"doom": Doom(turn_deg=3.5), "rooms": Rooms(turn_deg_s=56.0, max_spoilt_share=0.4)}
    )
    clips: dict[str, int] = field(default_factory=lambda: {"doom": 400, "rooms": 125})  # trained on
    clip_frames: int = 77
    piece: int = 25  # clips a file
    walks: int = 48  # measured, of each world
    away: tuple[int, ...] = (1, 32, 64, 96)  # where the bins of time away begin, in frames
    ways: tuple[int, ...] = (6, 10, 14, 18)  # latents of the way out; the way back has two fewer
    measured: tuple[int, ...] = (10, 14, 18)
    rollout: Rollout = field(default_factory=lambda: Rollout(chunk=2, memory=MEMORY))
    policies: tuple[str, ...] = ("full", "window", "relic", "relic_plain", "relic_landmarks")  # trained, in turn
    latents: int = 104  # of all the walks of a step
    steps: int = 1800
    marks: tuple[int, ...] = (225, 450, 900)  # steps after which the model is measured too
    shift: float = 4.0
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(muon=True, learning_rate=8e-4, warmup=40, final_share=0.02)
    )
    ema: float = 0.99
    checkpoint: Checkpointing = field(default_factory=lambda: Checkpointing(every_s=60.0))
    seed: int = 0  # of the training
    recording_seed: int = 3000

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a latent's tokens: 16x16 pixels each."""
        world = next(iter(self.worlds.values()))
        return world.height // 16, world.width // 16


def memory_tiny() -> Recipe:
    """The shipped base, in half an hour on a core, then as long for measuring (docs/results.md)."""
    return Recipe(name="memory_tiny")


def memory_tiny_relic() -> Recipe:
    """The model of memory_tiny, trained on for "relic" alone: is what it lacks training? A quarter of an hour."""
    gentle = Optimizer(muon=True, learning_rate=4e-4, warmup=20, final_share=0.02)
    return replace(
        memory_tiny(), name="memory_tiny_relic", start="out/memory/step-1800", policies=("relic",), steps=600, marks=(),
        walks=16, optimizer=gentle, seed=1,
    )  # fmt: skip


def memory_small() -> Recipe:
    """One GPU, a larger model from nothing at 224x128, 8x14 tokens a latent, the paper's window and schedule, walks
    of up to 20 s. Not run."""
    return Recipe(
        name="memory_small",
        model=config.Transformer(width=512, ffn=2048, layers=12, heads=8),
        start="",
        worlds={
            "doom": Doom(height=128, width=224, turn_deg=3.5),
            "rooms": Rooms(height=128, width=224, turn_deg_s=56.0, max_spoilt_share=0.4),
        },
        clips={"doom": 4000, "rooms": 4000},
        clip_frames=161,
        walks=200,
        away=(1, 48, 96, 160, 240),
        ways=(6, 12, 20, 30, 40),
        measured=(20, 30, 40),
        rollout=Rollout(chunk=2, memory=Memory(window=8, capacity=80, weigh_pooled=True, dtype="bf16")),
        latents=1560,
        steps=30000,
        marks=(2000, 5000, 10000, 20000),
        optimizer=Optimizer(muon=True, learning_rate=1e-3, warmup=200, final_share=0.02),
        ema=0.999,
    )


def memory_quick() -> Recipe:
    """For tests: everything in seconds; it learns nothing."""
    return Recipe(
        name="memory_quick",
        model=config.Transformer(width=48, ffn=64, layers=2, heads=2, control_width=16),
        start="",
        worlds={"rooms": Rooms(turn_deg_s=112.0, max_spoilt_share=1.0)},
        clips={"rooms": 2},
        clip_frames=29,
        piece=2,
        walks=4,
        away=(1, 12),
        ways=(4, 8),
        measured=(8,),
        rollout=Rollout(chunk=2, timesteps=(1000.0, 500.0), memory=replace(MEMORY, window=2)),
        latents=12,
        steps=6,
        marks=(3,),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (memory_tiny, memory_tiny_relic, memory_small, memory_quick)
}


def memories(cfg: Recipe, way: int) -> dict[str, Memory]:
    """The policies that are compared on walks of this way out.

    What landmarks cost is saved by pooling the old latents twice as far: as many are shown as "relic_landmarks" may at
    no more tokens than "relic", in the mean over the way back, but at least one."""
    usual = cfg.rollout.memory
    further = tuple(2 * stride if latent else stride for latent, stride in enumerate(usual.schedule))
    landmarks = replace(usual, policy="relic_landmarks", schedule=further, retrieved=1)
    while tokens_shown(cfg, more := replace(landmarks, retrieved=landmarks.retrieved + 1), way).mean() <= (
        tokens_shown(cfg, usual, way).mean()
    ):
        landmarks = more
    return {
        "full": replace(usual, policy="full"),
        "window": replace(usual, policy="window"),
        "relic": usual,
        "relic_plain": replace(usual, weigh_pooled=False),
        "relic_landmarks": landmarks,
    }


def tokens_shown(cfg: Recipe, memory: Memory, way: int) -> np.ndarray:
    """Tokens that each chunk of the way back is shown of the memory."""
    starts = range(way, num_latents(way), cfg.rollout.chunk)
    return np.array([memory.tokens(*cfg.grid, start, cfg.rollout.chunk) for start in starts])


def num_latents(way: int) -> int:
    return 2 * way - 2


def recorded(cfg: Recipe, world: str, region: str, count: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [n, T, H, W, 3] and poses [n, T, 4, 4] of clips; a piece that lies in `folder` is not made again."""
    frames, poses = [], []
    for start in range(0, count, cfg.piece):
        path = folder / f"{world}-{region}-{cfg.clip_frames}-{start:05d}.npz"
        if not path.exists():
            span = {"num_clips": cfg.piece, "num_frames": cfg.clip_frames, "start": start}
            record = import_module(f"relic.worlds.{world}").record
            clips = list(record(cfg.worlds[world], region=region, seed=cfg.recording_seed, **span))
            beside = path.with_suffix(".new.npz")
            np.savez(beside, frames=np.stack([c.frames for c in clips]), poses=np.stack([c.poses for c in clips]))
            beside.rename(path)
        found = np.load(path)
        frames.append(found["frames"])
        poses.append(found["poses"])
    return np.concatenate(frames)[:count], np.concatenate(poses)[:count]


def there_and_back(way: int) -> np.ndarray:
    """Frame numbers of a walk: the frames of `way` latents, then back from the last but one to the fourth."""
    out, back = 4 * way - 3, 4 * (way - 2)
    return np.concatenate([np.arange(out), out - 2 - np.arange(back)])


def conditions_of(poses: np.ndarray) -> Conditions:
    """What walks with poses [B, T, 4, 4] are conditioned on; no caption."""
    found = [controls(one, EXACT) for one in poses]
    text = PADDING.expand(len(poses), -1)
    return Conditions(torch.stack([a for a, _ in found]), torch.stack([p for _, p in found]), text)


def encoded(codec: Codec, frames: np.ndarray) -> Tensor:
    """Latents [B, F, C, H, W] of videos uint8 [B, T, H, W, 3]."""
    with torch.no_grad():
        return torch.cat([codec.encode(as_batch(video, codec.mean.device)) for video in frames])


def batch_of(
    cfg: Recipe, codec: Codec, clips: dict[str, tuple[np.ndarray, np.ndarray]], way: int, generator: np.random.Generator
) -> tuple[Tensor, Conditions]:
    """Latents and conditions of random walks there and back in random worlds, from random places of their clips;
    half of the ways out lead through the clip in reverse."""
    order = there_and_back(way)
    frames, poses = [], []
    for _ in range(max(1, cfg.latents // num_latents(way))):
        videos, tracks = clips[list(clips)[generator.integers(len(clips))]]
        row, start = generator.integers(len(videos)), generator.integers(cfg.clip_frames - 4 * way + 4)
        places = start + (order if generator.random() < 0.5 else order.max() - order)
        frames.append(videos[row, places])
        poses.append(tracks[row, places])
    return encoded(codec, np.stack(frames)), conditions_of(np.stack(poses))


def landmarks_of(cfg: Recipe, memory: Memory, way: int, generator: np.random.Generator) -> dict[int, tuple[int, ...]]:
    """Landmarks for every chunk of the way back: around the latent of the same place, now nearer, now further off. (A
    walk finds them by the cameras, a sample each; here a batch has them in common.)"""
    chosen = {}
    spread = generator.choice([0.0, 2.0, 8.0])
    for start in range(way, num_latents(way), cfg.rollout.chunk):
        old = np.arange(1, start - memory.window)
        far = abs(old - (2 * (way - 1) - start)) + spread * generator.random(len(old))
        chosen[start] = tuple(sorted(int(i) for i in old[np.argsort(far)[: memory.num_retrieved(start)]]))
    return chosen


def train(cfg: Recipe, clips: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> Transformer:
    """The trained model; hidden files are what a killed call goes on from, step-<n>/ the models at the marks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec = weights.load_codec(weights.start_folder(cfg.codec), device)
    torch.manual_seed(cfg.seed)
    model = Transformer(replace(cfg.model, frames=num_latents(cfg.ways[-1]))).to(device)
    if cfg.start:
        start = weights.start_folder(cfg.start)
        weights.check_start(cfg.model, start)
        weights.load_into(model, start)
    optimizers, ema = optimizer.Optimizers(model, cfg.optimizer), optimizer.Ema(model, cfg.ema)
    parts = optimizer.parts("model", model, optimizers, ema)
    checkpoints = Checkpoints(cfg.checkpoint.place(folder), parts, Mesh(device=device), cfg.checkpoint)
    losses: dict[str, list[float]] = {}

    for step in range(checkpoints.load(), cfg.steps):
        generator = np.random.default_rng((cfg.seed, step))
        # 1. the next policy, walks of one length
        way = int(generator.choice(cfg.ways))
        named = memories(cfg, way)
        name = cfg.policies[step % len(cfg.policies)]
        latents, conditions = batch_of(cfg, codec, clips, way, generator)
        # 2. every chunk of the way back, given what was before it
        loss = remembered_loss(
            model, latents.to(device), conditions.to(device), replace(cfg.rollout, memory=named[name]), first=way,
            shift=cfg.shift, draws=Draws((cfg.seed, step), range(len(latents))),
            landmarks=landmarks_of(cfg, named[name], way, generator),
        )  # fmt: skip
        loss.backward()
        # 3. one step
        optimizer.update(model, optimizers, loss, cfg.optimizer, optimizer.rate(cfg.optimizer, step, cfg.steps))
        ema.update(model, step)
        losses.setdefault(name, []).append(loss.item())
        if (step + 1) % 50 == 0:
            shown = {n: round(float(np.mean(values[-40:])), 4) for n, values in losses.items()}
            print(f"step {step + 1} of {cfg.steps}: {shown}", flush=True)
        if step + 1 in (*cfg.marks, cfg.steps):
            weights.save(ema.module, folder / f"step-{step + 1}")
        if checkpoints.due:
            checkpoints.save(step + 1)

    checkpoints.close()
    return ema.module.eval()
