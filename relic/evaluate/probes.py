"""What a model does beyond the picture: where its camera goes, what it makes of one action, what it remembers.

Cameras are read from the videos by the pose estimator. Everything is measured on the held-out walks of known maps.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from relic.evaluate import following, predict, revisit, trajectory
from relic.evaluate.config import Evaluate
from relic.evaluate.walks import Walks, as_frames
from relic.generate.rollout import chunks
from relic.geometry import actions as algorithm1
from relic.memory.config import Memory
from relic.model import pose_net
from relic.model.codec import VideoCodec
from relic.model.conditions import Conditions
from relic.model.pose_net import PoseNet
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.pretrained.words import Words

Make = Callable[[str, Walks, predict.Generate], np.ndarray]  # a name, walks -> videos uint8 [n, F_px, H, W, 3]


@torch.inference_mode()
def tracks(net: PoseNet, videos: np.ndarray, batch: int = 8) -> list[Tensor]:
    """Estimated poses [T, 4, 4] of videos uint8 [n, T, H, W, 3]."""
    device, found = next(net.parameters()).device, []
    for start in range(0, len(videos), batch):
        frames = as_frames(videos[start : start + batch]).to(device)
        found += list(pose_net.track(net, frames).cpu())
    return found


def cameras(
    net: PoseNet, walks: Walks, floors: dict[str, np.ndarray], videos: dict[str, np.ndarray], cfg: Evaluate
) -> tuple[dict, float]:
    """How the cameras of videos follow the walks, by the videos' names, after the floors, of which the first is the
    estimator on the true videos; `common` of a video are the errors where none of the videos' estimates has failed.
    And the estimator's unit in the walks'."""
    references, estimates = list(walks.poses), tracks(net, walks.frames)
    trajectory.check_direction(references, estimates)
    unit = trajectory.usual_scale(references, estimates, cfg.trajectory)
    read = {name: tracks(net, video) for name, video in {**floors, **videos}.items()}
    found = {"true video": followed(references, estimates, unit, cfg)}
    found |= {name: followed(references, estimated, unit, cfg) for name, estimated in read.items()}
    compared = trajectory.common({name: errors_of(references, read[name], unit, cfg) for name in videos})
    for name, errors in compared.items():
        found[name]["common"] = trajectory.summarise(errors, cfg.trajectory)
    return found, unit


def errors_of(references: list[Tensor], estimates: list[Tensor], unit: float, cfg: Evaluate) -> list[trajectory.Errors]:
    return [trajectory.compare(q, p, cfg.trajectory, unit=unit) for q, p in zip(references, estimates, strict=True)]


def followed(references: list[Tensor], estimates: list[Tensor], unit: float, cfg: Evaluate) -> dict:
    """The errors of estimated tracks over clips, and how well they do what the actions say."""
    errors = errors_of(references, estimates, unit, cfg)
    sound = [None if error.fault else track for error, track in zip(errors, estimates, strict=True)]
    return {
        **trajectory.summarise(errors, cfg.trajectory),
        "following": following.score(references, sound, cfg.following, unit=unit),
    }


def scripts(sizes: dict[str, float], num_frames: int) -> dict[str, Tensor]:
    """Actions [T, 13] of every known action alone, at its usual size, and of walking forward while turning."""
    mixed = [pair for pair in (("dolly_in", "pan_left"), ("dolly_in", "pan_right")) if set(pair) <= set(sizes)]
    made = {}
    for names in [(name,) for name in sizes] + mixed:
        script = torch.zeros(num_frames, algorithm1.NUM_ACTIONS, dtype=torch.float64)
        script[0, algorithm1.STATIC] = 1
        for name in names:
            script[1:, algorithm1.ACTIONS.index(name)] = sizes[name]
        made[" + ".join(names)] = script
    return made


def on_scripts(
    model: Transformer, net: PoseNet, walks: Walks, sizes: dict[str, float], unit: float, make: Make, cfg: Evaluate
) -> dict:
    """How the camera follows each script from the first frames of `script_starts` walks."""
    generate = predict.few_steps(model, replace(cfg, num_latents=cfg.script_latents))
    found = {}
    for name, script in scripts(sizes, 4 * (cfg.script_latents - 1) + 1).items():
        given = walks.first(cfg.script_starts).following(script, cfg.actions)
        found[name] = followed(list(given.poses), tracks(net, make(f"script {name}", given, generate)), unit, cfg)
    return found


def memories(cfg: Evaluate) -> dict[str, Memory]:
    """The memory that the model has, the same without its old latents, and one that forgets and pools nothing."""
    usual = cfg.rollout.memory
    return {"relic": usual, "window only": replace(usual, policy="window"), "full": replace(usual, policy="full")}


Permute = Callable[[Tensor, torch.Generator], Tensor]  # pooled [keys or values, layers, B, N, ...] -> as many, anew


def shuffled(pooled: Tensor, random: torch.Generator) -> Tensor:
    """Values change places among the tokens of their walk while the keys stay: attention finds where it looks and reads
    something else. (Moved with their keys, they would be found all the same: a key holds its pose.)"""
    mixed = pooled.clone()
    mixed[1] = pooled[1][:, :, torch.randperm(pooled.shape[3], generator=random)]
    return mixed


def exchanged(pooled: Tensor, random: torch.Generator) -> Tensor:
    """Every walk gets what another of its batch has pooled, keys and values; a walk alone in its batch keeps its own.

    All walks of a batch have pooled the same latents at the same strides: only what was seen there differs."""
    return pooled[:, :, torch.arange(pooled.shape[2]).roll(1)]


def permuted(model: Transformer, cfg: Evaluate, permute: Permute) -> predict.Generate:
    """The few-step rollout whose pooled tokens are permuted before every chunk; the image and the window stay."""

    def generate(image_latent: Tensor, conditions: Conditions) -> Tensor:
        walk = predict.started(model, cfg, image_latent, conditions)
        latents = [image_latent[:, None]]
        for made in chunks(walk, conditions.actions, num_latents=cfg.num_latents):
            latents.append(made)
            if pooled := walk.memory.parts(walk.cameras)[1:-1]:  # between the image and the window
                before = [part.read(slice(None)) for part in pooled]
                random = torch.Generator().manual_seed(cfg.seed + walk.num_latents)
                after = permute(torch.cat(before, 3), random).split([x.shape[3] for x in before], 3)
                for part, x in zip(pooled, after, strict=True):
                    part.write(x)
        return torch.cat(latents, 1)

    return generate


def on_returns(model: Transformer, walks: Walks, make: Make, cfg: Evaluate) -> tuple[dict, dict[str, np.ndarray]]:
    """How like itself, and like the truth, a place looks at the return from a walk there and back, for every memory,
    walk by walk against RELIC's; and the videos."""
    back = walks.returning(cfg.actions)
    videos = {"true": back.frames, "still": np.repeat(back.frames[:, :1], back.frames.shape[1], 1)}
    for name, memory in memories(cfg).items():
        changed = replace(cfg, rollout=replace(cfg.rollout, memory=memory))
        videos[name] = make(f"return {name}", back, predict.few_steps(model, changed))
    for name, permute in (("shuffled", shuffled), ("another walk's", exchanged)):
        videos[name] = make(f"return {name}", back, permuted(model, cfg, permute))
    found = {name: returned(back, video, cfg) for name, video in videos.items()}
    return {name: {**means(one), "behind_relic": behind(one, found["relic"])} for name, one in found.items()}, videos


def returned(back: Walks, videos: np.ndarray, cfg: Evaluate) -> dict[str, np.ndarray]:
    """Of each walk that does come back, [n]: PSNR at the returns, the gate, both multiplied, PSNR to the true frames.

    Where a camera is back is read off the poses asked for: over 60 frames the estimator's drift is larger than `near`.
    """
    found: dict[str, list[float]] = {"psnr_db": [], "gate": [], "gated_psnr_db": [], "psnr_to_truth_db": []}
    for video, poses, frames in zip(videos, back.poses, back.frames, strict=True):
        if (one := revisit.psnr_at_returns(video, poses, cfg.revisit)) is not None:
            at = revisit.returns(poses, cfg.revisit)[:, 0]
            one["psnr_to_truth_db"] = float(predict.psnr(video[at], frames[at]).mean())
            for name, values in found.items():
                values.append(one[name])
    return {name: np.array(values) for name, values in found.items()}


def means(found: dict[str, np.ndarray]) -> dict[str, float | None]:
    """The number of walks and the mean of each figure, None of no walk."""
    walks = len(found["gate"])
    return {"walks": walks, **{name: float(values.mean()) if walks else None for name, values in found.items()}}


def behind(found: dict[str, np.ndarray], relic: dict[str, np.ndarray]) -> dict[str, dict[str, float] | None]:
    """By how much RELIC's memory is better, walk by walk: the mean, its standard error, and in how many walks."""
    compared: dict[str, dict[str, float] | None] = {}
    for name in ("psnr_db", "psnr_to_truth_db"):
        less = relic[name] - found[name]
        compared[name] = None
        if len(less) > 1:
            error = float(less.std(ddof=1)) / len(less) ** 0.5
            compared[name] = {"mean": float(less.mean()), "error": error, "better_in": int((less > 0).sum())}
    return compared


@torch.inference_mode()
def chunk_latency_ms(model: Transformer, codec: VideoCodec, walks: Walks, words: Words, cfg: Evaluate) -> list[float]:
    """Milliseconds that each chunk of one walk takes, its decoding included; the first is left out as warming up."""
    device, one = codec.mean.device, walks.first(1)
    given = one.conditions(words).to(device)
    first = as_frames(one.frames[:, :1]).to(device)
    walk = predict.started(model, cfg, codec.encode(first)[:, 0], given)
    stream, at = codec.decoder_stream(), [time.perf_counter()]
    for made in chunks(walk, given.actions, num_latents=cfg.num_latents):
        with autocast(device):
            stream.decode(made).cpu()
        at.append(time.perf_counter())
    return [1000 * (end - began) for began, end in itertools.pairwise(at[1:])]
