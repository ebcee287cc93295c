"""The ways back of walks, generated under each policy of the memory, and how like the truth each frame is.

A frame counts when its view is to be remembered: neither the image, the window nor the chunk itself shows a pose as
near as `LEFT`. Its time away is that since a frame at such a pose was last seen.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from returning import EXACT, Recipe, conditions_of, encoded, memories, num_latents
from returning import there_and_back as order_of
from torch import Tensor

from relic.evaluate import likeness, revisit
from relic.evaluate.config import Revisit
from relic.evaluate.predict import psnr, to_bytes
from relic.generate.rollout import Rollout, chunks
from relic.memory.pooling import pool
from relic.model.codec import Codec
from relic.model.precision import autocast
from relic.model.transformer import Transformer

BATCH = 16  # walks generated together
REACH = 8  # latents that the decoder looks back
PLACE_FRAMES = 8  # a frame is recognised when it is taken for one so near, half a second
LEFT = Revisit().left  # mean steps: of a view that is at least so far, most is not in the picture
POOLED = {"keys_pooled": 0, "values_pooled": 1}  # of the full memory's old latents; the others stay whole


class Seen(NamedTuple):
    """The frames of the way back of n walks of one world and length, under one policy: each [n, R]."""

    psnr_db: np.ndarray
    ssim: np.ndarray
    place: np.ndarray  # whether it is recognised
    away: np.ndarray  # frames since its view was last seen; 0: it needs no memory


def time_away(cfg: Recipe, way: int, poses: np.ndarray) -> np.ndarray:
    """Frames since the views of the way back were last seen [n, R], of walks with poses [n, T, 4, 4]; 0 where the image
    or the window still shows them."""
    window, chunk, order = cfg.rollout.memory.window, cfg.rollout.chunk, order_of(way)
    found = np.zeros((len(poses), len(order) - 4 * way + 3), int)
    for row, track in enumerate(poses):
        near = revisit.distances(torch.from_numpy(track[order]), Revisit(), None) < LEFT
        for frame in range(4 * way - 3, len(order)):
            latent = (frame + 3) // 4 // chunk * chunk  # the chunk's first
            last = np.flatnonzero(near[frame, : 4 * latent - 3]).max()
            hidden = not near[frame, 0] and last < 4 * (latent - window) - 3
            found[row, frame - 4 * way + 3] = (frame - last) * hidden
    return found


def pooled_half(walk: Rollout, which: int, stride: int) -> None:
    """Lets a walk with the full memory keep its old latents' keys (0) or values (1) as if they were pooled, the others
    whole: does pooling lose the way to a place, or what was there?"""
    memory, append = walk.memory, walk.memory.append
    rows, columns = memory.rows, memory.columns
    window: deque[list[list[Tensor]]] = deque()  # of each latent its keys and values, a list over the blocks

    def means(x: Tensor) -> Tensor:
        """Every token of [B, rows * columns, K, head_width] as the mean of its cell."""
        cells = pool(rearrange(x.float(), "b (h w) k d -> b h w (k d)", h=rows), stride)
        wide = cells.repeat_interleave(stride, 1)[:, :rows].repeat_interleave(stride, 2)[:, :, :columns]
        return rearrange(wide, "b h w (k d) -> b (h w) k d", k=x.shape[2])

    def appended(
        keys: Sequence[Tensor], values: Sequence[Tensor], *, poses: Tensor, pooled: Sequence[None] = ()
    ) -> None:
        assert not pooled, "of keys and values, not of latents"
        leaving = []
        for index, start in enumerate(range(0, keys[0].shape[1], rows * columns)):
            window.append([[x[:, start : start + rows * columns] for x in of] for of in (keys, values)])
            if (number := memory.num_latents + index - memory.cfg.window) >= 0:
                old = window.popleft()
                if number:  # the image stays as it is
                    old[which] = [means(x) for x in old[which]]
                leaving.append((old[0], old[1]))
        append(keys, values, poses=poses, pooled=leaving)

    memory.append = appended  # type: ignore[method-assign, assignment]


@torch.inference_mode()
def generated(
    cfg: Recipe, model: Transformer, codec: Codec, policy: str, way: int, frames: np.ndarray, poses: np.ndarray
) -> np.ndarray:
    """The ways back uint8 [n, R, H, W, 3] of walks whose clips are frames [n, T, H, W, 3] with poses [n, T, 4, 4]."""
    order, made = order_of(way), []
    for start in range(0, len(frames), BATCH):
        part = slice(start, start + BATCH)
        latents = encoded(codec, frames[part][:, order])
        given = conditions_of(poses[part][:, order]).to(latents.device)
        rollout = replace(cfg.rollout, memory=memories(cfg, way)["full" if policy in POOLED else policy])
        walk = Rollout(model, rollout, image_latent=latents[:, 0], text=given.text, seed=0, unit=EXACT)
        if policy in POOLED:
            pooled_half(walk, POOLED[policy], cfg.rollout.memory.stride(1))
        while walk.num_latents < way:
            done = walk.num_frames
            seen = latents[:, walk.num_latents :][:, : rollout.chunk]
            walk.see(given.actions[:, done : done + walk.num_actions], seen)
        back = chunks(walk, given.actions, num_latents=num_latents(way))
        made.append(decoded(codec, torch.cat([latents[:, :way], *back], 1), way))
    return np.concatenate(made)


@torch.inference_mode()
def decoded(codec: Codec, latents: Tensor, way: int) -> np.ndarray:
    """The frames uint8 [n, R, H, W, 3] of the ways back of walks with latents [n, F, C, H, W], one by one, which a CPU
    likes better; further back than `REACH` latents the decoder does not look."""
    with autocast(latents.device):
        videos = [codec.decode(one[None, max(0, way - REACH) :]).float() for one in latents]
    return to_bytes(torch.cat(videos)[:, -4 * (latents.shape[1] - way) :])


def measured(
    cfg: Recipe,
    model: Transformer,
    codec: Codec,
    clips: dict[str, tuple[np.ndarray, np.ndarray]],
    folder: Path,
    policies: Sequence[str],
) -> dict[tuple[str, int, str], Seen]:
    """What is seen by (world, way, policy); the policy "codec" is the true way back through the codec, a ceiling. What
    lies in `folder` is not measured again."""
    found = {}
    for world, way in product(clips, cfg.measured):
        frames, poses = clips[world]
        order, out = order_of(way), 4 * way - 3
        true, away = frames[:, order[out:]], time_away(cfg, way, poses)
        known = likeness.fingerprints(frames[:, :out])
        for policy in policies:
            path = folder / f"seen-{world}-{way}-{policy}-{len(frames)}.npz"
            if not path.exists():
                if policy == "codec":
                    video = decoded(codec, encoded(codec, frames[:, order]), way)
                else:
                    video = generated(cfg, model, codec, policy, way, frames, poses)
                place = likeness.recognised(likeness.fingerprints(video), known, order[out:], PLACE_FRAMES)
                beside = path.with_suffix(".new.npz")
                np.savez(beside, psnr_db=psnr(video, true), ssim=likeness.ssim(video, true), place=place, away=away)
                beside.rename(path)
                print(f"{world}, way out of {way} latents, {policy}: measured", flush=True)
            found[world, way, policy] = Seen(**np.load(path))
    return found
