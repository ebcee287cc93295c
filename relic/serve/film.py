"""`relic generate`: a walk by a script of actions, as frames; the command writes the video.

The student's is a walk as it is served, the teacher's one call of the sampler."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from relic import artifacts, stores
from relic.generate import sampler, script
from relic.generate.config import Rollout, Sampler
from relic.geometry.actions import ACTIONS, STATIC, integrate
from relic.geometry.config import Actions
from relic.model.codec import PATCH, VideoCodec
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.model.weights import load_transformer
from relic.pretrained import codecs, words
from relic.serve import engine, export, images, wire
from relic.serve.config import Film
from relic.serve.decoding import pictures
from relic.serve.world import World

MOST_PIXELS = 80_000_000  # of the picture


@dataclass(frozen=True)
class Source:
    """A finished run, or an export alone."""

    folder: Path  # of the export
    nodes: dict[str, str]  # the run's artifacts; none of an export alone
    world: World


def find(run: str, place: str) -> Source:
    """The source in a run.json, or the export at a place (URI or folder)."""
    nodes = export.nodes_of(Path(run), "teacher", "codec", "evaluate", "export") if run else {}
    folder = export.find(nodes["export"] if run else place)
    name = artifacts.read_json(folder / export.SETTINGS)["name"]
    return Source(folder, nodes, export.read_world(folder / "examples", recipe=name, about={}))


def options(source: Source) -> type[Film]:
    """The command's options, with the dials that the source was measured with as defaults."""
    said = artifacts.read_json(source.folder / export.SETTINGS)
    dials = {
        "rollout": (Rollout, export.rollout_of(said["rollout"], said["rollout"]["memory"]["dtype"])),
        "unit": (Actions, Actions(**said["actions"])),
        "height": (int, source.world.height), "width": (int, source.world.width), "fps": (float, source.world.fps),
    }  # fmt: skip
    if source.nodes:
        measured = stores.read_manifest(source.nodes["evaluate"])["parameters"]
        dials["sampler"] = (Sampler, Sampler(**measured["sampler"]))
    changed = [(name, kind, field(default=value)) for name, (kind, value) in dials.items()]
    made = make_dataclass("Film", changed, bases=(Film,), frozen=True, kw_only=True)
    made.__module__ = Film.__module__  # where --help finds what Film's comments say of the fields
    return made


def main(cfg: Film, source: Source | None) -> np.ndarray:
    """The frames uint8 [T, H, W, 3] of the walk, the picture first: the script's length, up to the end of a chunk.

    Without a source every action's usual size is 1: a mean step, or a rotation's unit."""
    device = engine.choose_device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    sizes = source.world.actions if source else dict.fromkeys(ACTIONS[:-1], 1.0)
    chunk = cfg.rollout.chunk if cfg.kind == "student" else 1
    actions = rows(script.parse(cfg.actions, cfg.fps), sizes, speed=cfg.speed, chunk=chunk)
    image = picture(Path(cfg.image), height=cfg.height, width=cfg.width)
    if source and cfg.kind == "student":
        student = engine.read(source.folder, device, rollout=cfg.rollout, unit=cfg.unit, text_encoder=cfg.text_encoder)
        check_size(cfg, student.model)
        return by_student(student, cfg, image=image, actions=actions)
    model, codec = networks(cfg, source, device)
    said = words.of(model.cfg, cfg.text_encoder, device)
    check_size(cfg, model)
    if cfg.kind == "teacher":
        return by_teacher(model, codec, said, cfg, image=image, actions=actions, device=device)
    world = World(cfg.weights, cfg.height, cfg.width, cfg.fps, sizes, (), {})
    student = engine.Student(model, codec, cfg.rollout, words=said, unit=cfg.unit, world=world, device=device)
    return by_student(student, cfg, image=image, actions=actions)


def check_size(cfg: Film, model: Transformer) -> None:
    sides = [side * cells for side, cells in zip(PATCH[1:], model.cfg.patch[1:], strict=True)]
    if cfg.height % sides[0] or cfg.width % sides[1]:
        raise ValueError(
            f"the video is {cfg.width}x{cfg.height} pixels; allowed are multiples of {sides[1]} and of {sides[0]}"
        )


def networks(cfg: Film, source: Source | None, device: torch.device) -> tuple[Transformer, VideoCodec]:
    """The teacher of a run, or the model that the options name, and its codec."""
    places = (source.nodes["teacher"], source.nodes["codec"]) if source else (cfg.weights, cfg.codec)
    weights, codec = (stores.fetch(place) if source or "://" in place else Path(place) for place in places)
    return load_transformer(weights, device), codecs.load(codec, device)


def picture(path: Path, *, height: int, width: int) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"image is {str(path)!r}, which is no file; give a {images.KINDS}")
    return images.fit(path.read_bytes(), height=height, width=width, most_pixels=MOST_PIXELS)


def rows(held: list[script.Held], sizes: dict[str, float], *, speed: float, chunk: int) -> Tensor:
    """Actions [T, 13] float64 of a script: the picture's, which is still, and one a frame.

    What is held last is held until the end of its chunk: T = 4 (F - 1) + 1 for whole chunks of F latents."""
    moves = [
        torch.from_numpy(wire.settled(wire.usual(part.actions, sizes) * speed))
        for part in held
        for _ in range(part.num_frames)
    ]
    num_latents = -(-(1 + -(-len(moves) // 4)) // chunk) * chunk
    moves += moves[-1:] * (4 * (num_latents - 1) - len(moves))
    still = torch.zeros(len(ACTIONS), dtype=torch.float64)
    still[STATIC] = 1
    return torch.stack([still, *moves])


def by_student(student: engine.Student, cfg: Film, *, image: np.ndarray, actions: Tensor) -> np.ndarray:
    walk, frames, done = student.open(image, cfg.caption, cfg.seed), [], 1
    while done < len(actions):
        following = done + walk.num_actions
        frames += [made for made, _ in walk.step(actions[done:following].numpy())]
        done = following
    return np.concatenate(frames)


@torch.inference_mode()
def by_teacher(
    model: Transformer,
    codec: VideoCodec,
    said: words.Words,
    cfg: Film,
    *,
    image: np.ndarray,
    actions: Tensor,
    device: torch.device,
) -> np.ndarray:
    batch = rearrange(actions, "t a -> 1 t a")
    latents = sampler.sample(
        model, cfg.sampler, image_latent=engine.encoded(codec, image, device),
        conditions=Conditions(
            batch.float(), integrate(batch, cfg.unit).float(), said([cfg.caption]), said([""])
        ).to(device),
        num_latents=(len(actions) + 3) // 4, seed=cfg.seed,
    )  # fmt: skip
    stream = codec.decoder_stream()  # latent by latent: a long video's activations at once would fill the memory
    return np.concatenate([pictures(stream, latent).cpu().numpy() for latent in latents.split(1, 1)])
