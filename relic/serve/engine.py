"""The engine: a student and its codec behind a few calls, of which `open` an image and `step` with actions come first.

A walk may go on without end. Its memory has a capacity (80 latents, 20 s, in the paper; less in small recipes): beyond
it the oldest compressed latents leave, the start image's stays as a sink, and positions are re-based. So a place that
was left longer ago than the capacity is invented anew when the walk returns, and a walk longer than the clips of the
training is extrapolation: it runs at the same speed and in the same memory, but nothing has taught it to stay sharp.
"""

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from relic import artifacts
from relic.generate.config import Rollout as RolloutConfig
from relic.generate.context import Context
from relic.generate.rollout import Rollout
from relic.geometry.config import Actions
from relic.model import fp8, fused
from relic.model.codec import Stream, VideoCodec
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.pretrained import codecs, words
from relic.pretrained.words import Words
from relic.serve import export, graphs
from relic.serve.config import Serve
from relic.serve.decoding import Pictures, decoder_on
from relic.serve.world import State, World

logger = logging.getLogger("relic.serve")


class Student:
    """The trained student: a `Rollout` and a decoder stream for every walk, the weights shared."""

    def __init__(self, model: Transformer, codec: VideoCodec, cfg: RolloutConfig, *, words: Words, unit: Actions,
                 world: World, device: torch.device):  # fmt: skip
        self.model, self.codec, self.cfg, self.words = model, codec, cfg, words
        self.unit, self.world, self.device, self.decoder = unit, world, device, decoder_on(device)
        self.warm_chunks = 3
        self.context: Context | None = None  # shared by the walks, of which one steps at a time

    @torch.inference_mode()
    def open(self, image: np.ndarray, caption: str, seed: int) -> "StudentWalk":
        latent = encoded(self.codec, image, self.device)
        return self.begin(latent, self.words([caption]).to(self.device), seed)

    def begin(self, image_latent: Tensor, text: Tensor, seed: int) -> "StudentWalk":
        rollout = Rollout(
            self.model, self.cfg, image_latent=image_latent, text=text, seed=seed, unit=self.unit, context=self.context
        )
        self.context = rollout.context
        return StudentWalk(self, rollout, self.codec.decoder_stream())

    @torch.inference_mode()
    def restore(self, state: State) -> "StudentWalk":
        if (made_by := state.facts["engine"]) != self.facts:
            raise ValueError(f"the walk was made by {made_by}; this engine is {self.facts}")

        def own(x: Tensor) -> Tensor:
            return x.to(self.device, copy=True)  # a view would keep all of the state

        walk = self.begin(own(state.tensors["image"]), own(state.tensors["text"]), state.facts["seed"])
        walk.rollout.load(under("rollout", state.tensors))
        walk.stream.load({name: own(x) for name, x in under("stream", state.tensors).items()})
        return walk

    @property
    def facts(self) -> dict[str, Any]:
        """What a walk's state depends on."""
        own = {"export": self.world.export, "rollout": asdict(self.cfg), "gpus": self.model.sequence.size}
        return json.loads(json.dumps(own))

    @property
    def free_bytes(self) -> int | None:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    @torch.inference_mode()
    def check(self) -> None:
        if not torch.ones(4, device=self.device).sum().item() == 4:
            raise RuntimeError(f"{self.device} computes wrongly")


class StudentWalk:
    def __init__(self, student: Student, rollout: Rollout, stream: Stream):
        self.student, self.rollout, self.stream = student, rollout, stream

    @property
    def num_actions(self) -> int:
        return self.rollout.num_actions

    def storage(self) -> dict[int, int]:
        held = [x for store in self.rollout.memory.stores for x in store.tensors().values()]
        return bytes_of([*held, *self.stream.tensors().values()])

    def most_bytes(self, *, points: int, every: int) -> int:
        chunk, features = self.student.cfg.chunk, sum(bytes_of(self.stream.tensors().values()).values())
        memories = self.rollout.memory.most_bytes(points=points, every=-(-every // (4 * chunk)) * chunk)
        return memories + features * (1 + points)  # the newest branch still has the walk's own

    @property
    def decode_s(self) -> float:
        return self.student.decoder.seconds

    @torch.inference_mode()
    def step(self, actions: np.ndarray) -> Pictures:
        first = self.rollout.num_frames == 1
        latents = self.rollout.make(torch.from_numpy(actions).float()[None].to(self.student.device))
        if first:
            latents = torch.cat([self.rollout.image[:, None], latents], 1)
        decoder = self.student.decoder
        made = decoder.start(self.stream, latents, self.rollout.poses[0, -(4 * latents.shape[1] - 3 * first) :])
        if decoder.at_once:
            self.rollout.keep()
        yield from made
        if not decoder.at_once:
            self.rollout.keep()
        if not decoder.finite:  # said when all processes of a model have made the chunk
            raise FloatingPointError("the walk's latents are not finite")

    @torch.inference_mode()  # as `step`: for tensors of another kind a compiler makes its functions anew
    def branch(self) -> "StudentWalk":
        return StudentWalk(self.student, self.rollout.branch(), self.stream.branch())

    @torch.inference_mode()
    def state(self) -> State:
        rollout, stream = self.rollout.tensors(), self.stream.tensors()
        tensors = {"image": self.rollout.image, "text": self.rollout.text}
        tensors |= {f"rollout.{name}": x for name, x in rollout.items()}
        tensors |= {f"stream.{name}": x for name, x in stream.items()}
        facts = {"engine": self.student.facts, "seed": self.rollout.seed}
        return State({name: x.cpu().contiguous() for name, x in tensors.items()}, facts)


def bytes_of(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of their storage, by its address."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


def under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `name` and a dot, without that."""
    return {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}


def encoded(codec: VideoCodec, image: np.ndarray, device: torch.device) -> Tensor:
    """The latent [1, C, h, w] of an image uint8 [H, W, 3]."""
    frames = rearrange(torch.from_numpy(image.copy()), "h w c -> 1 1 c h w").to(device) / 255
    with autocast(device):
        return codec.encode(frames)[:, 0].float()


def load(cfg: Serve, device: torch.device) -> Student:
    """The student and codec of an export, with its start images."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    folder = export.folder_of(cfg)
    said = artifacts.read_json(folder / export.SETTINGS)
    rollout = export.rollout_of(said["rollout"], cfg.memory_dtype)
    rollout = replace(rollout, chunk=cfg.chunk or rollout.chunk, context=cfg.context or rollout.context)
    student = read(folder, device, rollout=rollout, unit=Actions(**said["actions"]), text_encoder=cfg.text_encoder)
    if device.type == "cuda":
        make_fast(student, compile=cfg.compile, replay=cfg.graphs and cfg.gpus == 1)
    return student


def make_fast(student: Student, *, compile: bool, replay: bool) -> None:
    """Fused functions and CUDA graphs for a student on a GPU."""
    if compile:
        fused.use()
    if replay:
        graphs.use(student.model)
        student.warm_chunks = num_states(student.cfg) + 1


def num_states(cfg: RolloutConfig) -> int:
    """Chunks of a walk after which its passes see no number of tokens that they have not seen."""
    memory = cfg.memory
    cycle = math.lcm(len(memory.schedule), cfg.chunk)
    return -(-(memory.capacity + memory.window + cycle) // cfg.chunk)


def read(folder: Path, device: torch.device, *, rollout: RolloutConfig, unit: Actions, text_encoder: str) -> Student:
    """The student and codec in the folder of an export, with its start images."""
    model, codec = export.load_student(folder, device), codecs.load(folder / "codec", device)
    said = words.of(model.cfg, text_encoder, device)
    num_parameters = sum(p.numel() for p in model.parameters())
    linears = fp8.make_ready(model, device)
    about: dict[str, object] = {
        "chunk_latents": rollout.chunk, "steps": len(rollout.timesteps), "device": device_name(device),
        "memory": rollout.memory.dtype, "window": rollout.memory.window, "capacity": rollout.memory.capacity,
        "parameters": num_parameters, "linears": linears,
    }  # fmt: skip
    logger.info("the blocks' linears: %s", linears)
    key = artifacts.read_json(folder / artifacts.MANIFEST)["key"]
    name = artifacts.read_json(folder / export.SETTINGS)["name"]
    world = replace(export.read_world(folder / "examples", recipe=name, about=about), export=key)
    return Student(model, codec, rollout, words=said, unit=unit, world=world, device=device)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; allowed are auto, cpu, cuda and cuda:N") from error
    num_gpus = torch.cuda.device_count()
    if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= num_gpus):
        raise ValueError(f"device is {name!r}; here are cpu and {num_gpus} GPUs (cuda:N)")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
