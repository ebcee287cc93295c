"""Continues each walk from its first frame by the teacher's sampler or the student's rollout, and scores it by PSNR."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relic.evaluate.config import Evaluate
from relic.evaluate.walks import Walks, as_frames
from relic.generate import sampler
from relic.generate.rollout import Rollout, chunks
from relic.model.codec import VideoCodec
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer

Generate = Callable[[Tensor, Conditions], Tensor]  # image latents [B, C, H, W], conditions -> latents [B, F, C, H, W]


def many_steps(model: Transformer, cfg: Evaluate) -> Generate:
    """The teacher: all latents at once."""

    def generate(image_latent: Tensor, conditions: Conditions) -> Tensor:
        return sampler.sample(
            model,
            cfg.sampler,
            image_latent=image_latent,
            conditions=conditions,
            num_latents=cfg.num_latents,
            seed=cfg.seed,
        )

    return generate


def few_steps(model: Transformer, cfg: Evaluate) -> Generate:
    """The student: chunk by chunk over its memory."""

    def generate(image_latent: Tensor, conditions: Conditions) -> Tensor:
        walk = started(model, cfg, image_latent, conditions)
        made = chunks(walk, conditions.actions, num_latents=cfg.num_latents)
        return torch.cat([image_latent[:, None], *made], 1)

    return generate


def started(model: Transformer, cfg: Evaluate, image_latent: Tensor, conditions: Conditions) -> Rollout:
    return Rollout(model, cfg.rollout, image_latent=image_latent, text=conditions.text, seed=cfg.seed, unit=cfg.actions)


@torch.inference_mode()
def videos(
    generate: Generate,
    codec: VideoCodec,
    images: np.ndarray,
    conditions: Conditions,
    cfg: Evaluate,
    folder: Path,
    made: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Videos uint8 [n, F_px, H, W, 3] that begin with `images` uint8 [n, H, W, 3] and follow n conditions.

    A finished batch lies in `folder` and is not generated again; `made` hears of each how many videos it has."""
    device, done = codec.mean.device, []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), cfg.batch):
        path = folder / f"{start:05d}.npy"
        if not path.exists():
            part = slice(start, start + cfg.batch)
            first = as_frames(images[part, None]).to(device)
            given = conditions.rows(part).to(device)
            with autocast(device):
                video = to_bytes(codec.decode(generate(codec.encode(first)[:, 0], given)).float())
            beside = path.with_suffix(".new.npy")
            np.save(beside, video)
            beside.rename(path)
        done.append(np.load(path))
        made(len(done[-1]))
    return np.concatenate(done)


@torch.inference_mode()
def coded(codec: VideoCodec, videos: np.ndarray, batch: int) -> np.ndarray:
    """Videos uint8 [n, F_px, H, W, 3] as the codec keeps them: the best that any model can make."""
    done = []
    for start in range(0, len(videos), batch):
        frames = as_frames(videos[start : start + batch]).to(codec.mean.device)
        with autocast(codec.mean.device):
            done.append(to_bytes(codec.decode(codec.encode(frames)).float()))
    return np.concatenate(done)


def to_bytes(frames: Tensor) -> np.ndarray:
    """uint8 [n, F_px, H, W, 3] of frames [n, F_px, 3, H, W] in 0..1."""
    return (frames.clamp(0, 1) * 255).round().byte().movedim(2, -1).cpu().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB [n, F_px] of videos uint8 [n, F_px, H, W, 3], frame by frame; at most 48 dB, the step of 8 bits."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((-1, -2, -3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1.0))


def figures(walks: Walks, true: np.ndarray, other: np.ndarray, horizon_s: float) -> dict[str, float]:
    """The headline figures over the first `horizon_s`; frame 0, which is given, does not count."""
    horizon = slice(1, 1 + round(horizon_s * walks.fps))
    still = psnr(np.repeat(walks.frames[:, :1], walks.frames.shape[1], 1), walks.frames)[:, horizon]
    right, wrong = psnr(true, walks.frames)[:, horizon], psnr(other, walks.frames)[:, horizon]
    return {
        "psnr_gain_over_still_db": float((right - still).mean()),
        "action_win_rate": float((right.mean(1) > wrong.mean(1)).mean()),
        "psnr_db": float(right.mean()),
        "psnr_still_db": float(still.mean()),
        "walks": len(walks),
    }
