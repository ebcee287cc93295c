"""Does memory remember? Walks that leave and come back, seen anew under each policy of the memory.

    python benchmarks/memory.py --recipe memory_tiny --out out/memory --json benchmarks/results/memory.json
    python benchmarks/memory.py --recipe memory_tiny --out out/memory --mark 600 --json figures.json  # that early

Records walks, trains one model for all policies (returning.py) and measures it in worlds it has not seen; what lies in
the folder is not made again. A walk's way out is true video, put into the memory by `Rollout.see`; its way back is
generated, and its truth is the way out. A frame counts when its view is to be remembered: neither the image, the window
nor the chunk itself shows a pose as near as `LEFT`. Its time away is that since a frame at such a pose was last seen.
"""

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from returning import EXACT, RECIPES, Recipe, conditions_of, encoded, memories, num_latents, recorded, train
from returning import there_and_back as order_of

from relic.evaluate import likeness, revisit
from relic.evaluate.config import Revisit
from relic.evaluate.predict import psnr, to_bytes
from relic.generate.rollout import Rollout, chunks
from relic.memory.config import Memory
from relic.model import weights
from relic.model.codec import Codec
from relic.model.transformer import Transformer

BATCH = 16  # walks generated together
REACH = 8  # latents
POOLED = {"keys_pooled": 0, "values_pooled": 1}  # of the full memory's old latents; the others stay whole
PLACE_FRAMES = 8  # a frame is recognised when it is taken for one so near, half a second
METRICS = ("psnr_db", "ssim", "place")
PAIRS = (("full", "window"), ("relic", "window"), ("relic_landmarks", "window"), ("relic", "full"),
         ("relic_landmarks", "relic"), ("relic", "relic_plain"))  # fmt: skip
LEFT = Revisit().left  # mean steps: of a view that is at least so far, most is not in the picture


Away = tuple[int, int]  # frames, from and to


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

    def appended(keys: Sequence[Tensor], values: Sequence[Tensor], *, poses: Tensor) -> None:
        leaving = []
        for start in range(0, keys[0].shape[1], rows * columns):
            window.append([[x[:, start : start + rows * columns] for x in of] for of in (keys, values)])
            if len(window) > memory.cfg.window:
                old = window.popleft()
                if memory.num_latents + len(leaving) > memory.cfg.window:  # the image stays as it is
                    old[which] = [means(x) for x in old[which]]
                leaving.append((old[0], old[1]))
        append(keys, values, poses=poses, pooled=leaving)

    memory.append = appended  # type: ignore[method-assign]


@torch.inference_mode()
def generated(
    cfg: Recipe, model: Transformer, codec: Codec, policy: str, way: int, frames: np.ndarray, poses: np.ndarray
) -> np.ndarray:
    """The ways back uint8 [n, R, H, W, 3] of walks whose clips are frames [n, T, H, W, 3] with poses [n, T, 4, 4]."""
    order, made = order_of(way), []
    for start in range(0, len(frames), BATCH):
        part = slice(start, start + BATCH)
        latents, given = encoded(codec, frames[part][:, order]), conditions_of(poses[part][:, order])
        rollout = replace(cfg.rollout, memory=memory)
        walk = Rollout(model, rollout, image_latent=latents[:, 0], text=given.text, seed=cfg.seed, unit=EXACT)
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
    cfg: Recipe, model: Transformer, codec: Codec, clips: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path
) -> dict[tuple[str, int, str], Seen]:
    """What is seen by (world, way, policy); the policy "codec" is the true way back through the codec, a ceiling. What
    lies in `folder` is not measured again."""
    found = {}
    for world, way in product(clips, cfg.measured):
        frames, poses = clips[world]
        order, out = order_of(way), 4 * way - 3
        true, away = frames[:, order[out:]], time_away(cfg, way, poses)
        known = likeness.fingerprints(frames[:, :out])
        for policy in ("codec", *memories(cfg, way), *POOLED):
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


def bins(cfg: Recipe) -> list[tuple[int, int]]:
    """Times away [from, to) in frames; the last is all of them."""
    edges = [*cfg.away, 4 * num_latents(cfg.ways[-1])]
    return [*pairwise(edges), (edges[0], edges[-1])]


def by_clip(
    found: dict[tuple[str, int, str], Seen], cfg: Recipe, worlds: list[str], policy: str, metric: str, away: Away
) -> np.ndarray:
    """The mean of each clip's frames [n] that count and lie in a bin of time away, over its walks of all lengths, for
    they are of one scene; clips that have none are left out."""
    values = []
    for world in worlds:
        seen = [found[world, way, policy] for way in cfg.measured]
        inside = [(one.away >= away[0]) & (one.away < away[1]) for one in seen]
        total = sum((getattr(one, metric) * counts).sum(1) for one, counts in zip(seen, inside, strict=True))
        count = np.sum([counts.sum(1) for counts in inside], 0)
        values.append(total[count > 0] / count[count > 0])
    return np.concatenate(values)


def rows_of(found: dict[tuple[str, int, str], Seen], cfg: Recipe) -> dict[str, list[dict]]:
    """The figures by world, time away, policy and metric; differences between policies, clip by clip; and what share of
    the full memory's gain over the window alone a policy keeps. All with 95 % intervals."""
    policies = ["codec", *memories(cfg, cfg.ways[0])]
    rows: dict[str, list[dict]] = {"policies": [], "differences": [], "shares": []}
    for worlds, away, metric in product([*([w] for w in cfg.worlds), list(cfg.worlds)], bins(cfg), METRICS):
        of = {policy: by_clip(found, cfg, worlds, policy, metric, away) for policy in policies}
        about = {"world": " + ".join(worlds), "away_frames": away, "metric": metric, "clips": len(of["full"])}
        if len(of["full"]) < 2:
            continue
        for policy, values in of.items():
            rows["policies"].append({**about, "policy": policy, **likeness.interval(values)._asdict()})
        for policy, other in PAIRS:
            less = likeness.interval(of[policy] - of[other])
            rows["differences"].append({**about, "policy": policy, "less": other, **less._asdict()})
        for policy in ("relic", "relic_plain", "relic_landmarks"):
            kept = likeness.ratio(of[policy] - of["window"], of["full"] - of["window"])
            rows["shares"].append({**about, "policy": policy, **kept._asdict()})
    return rows


def tokens(cfg: Recipe) -> list[dict]:
    """Tokens that the chunks of the way back are shown, in the mean and at most, by length and policy."""
    found = []
    for way in cfg.measured:
        for policy, memory in memories(cfg, way).items():
            shown = tokens_shown(cfg, memory, way)
            about = {"way_latents": way, "policy": policy, "retrieved": memory.num_retrieved(num_latents(way))}
            found.append({**about, "mean": float(shown.mean()), "most": int(shown.max())})
    return found


def table(figures: dict[str, list[dict]], cfg: Recipe) -> str:
    """PSNR by policy and time away, as Markdown, and the shares of the gain that is kept."""
    lines = []
    for world in [*cfg.worlds, " + ".join(cfg.worlds)]:
        mine = [row for row in figures["policies"] if row["world"] == world and row["metric"] == "psnr_db"]
        columns = sorted({row["away_frames"] for row in mine})
        lines += [f"| {world} | " + " | ".join(f"{low} to {high}" for low, high in columns) + " |"]
        lines += ["|---" * (1 + len(columns)) + "|"]
        for policy in dict.fromkeys(row["policy"] for row in mine):
            cells = [next(r for r in mine if (r["policy"], r["away_frames"]) == (policy, away)) for away in columns]
            lines.append(f"| {policy} | " + " | ".join(map(shown, cells)) + " |")
        for row in figures["shares"]:
            if row["world"] == world and row["away_frames"] == bins(cfg)[-1]:
                lines.append(f"{row['policy']} keeps of the full memory's gain in {row['metric']}: {shown(row)}")
        lines.append("")
    return "\n".join(lines)


def shown(row: dict) -> str:
    return f"{row['mean']:.2f} ({row['low']:.2f}, {row['high']:.2f})"


def facts_of(cfg: Recipe, device: str) -> dict:
    """What made the figures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    return {
        "recipe": cfg.name, "commit": commit.stdout.strip(), "command": " ".join(["python", *sys.argv]),
        "hardware": gpu or platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "walks": cfg.walks, "trained_on": cfg.clips, "steps": cfg.steps,
        "latents_a_step": cfg.latents,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="memory_tiny")
    parser.add_argument("--out", type=Path, default=Path("out/memory"), help="clips, checkpoint and models")
    parser.add_argument("--mark", type=int, default=0, help="measure the model after so many steps, not the last")
    parser.add_argument("--walks", type=int, help="of each world; by default the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("/dev/stdout"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cfg = RECIPES[given.recipe]()
    cfg = replace(cfg, walks=given.walks or cfg.walks)
    if given.mark and given.mark not in cfg.marks:
        parser.error(f"--mark is {given.mark}; allowed are {', '.join(map(str, cfg.marks))}")
    given.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = given.mark or cfg.steps
    if not (given.out / f"step-{step}" / "config.json").exists():
        train(cfg, {w: recorded(cfg, w, "train", n, given.out) for w, n in cfg.clips.items()}, given.out)
    model = weights.load_transformer(folder := given.out / f"step-{step}", device)
    codec = weights.load_codec(weights.start_folder(cfg.codec), device).to(memory_format=torch.channels_last)
    clips = {world: recorded(cfg, world, "unseen", cfg.walks, given.out) for world in cfg.worlds}
    patch = model.cfg.patch
    facts = {**facts_of(cfg, device), "measured_after": step, "tokens": tokens(cfg)}
    figures = rows_of(measured(cfg, model, codec, clips, folder), cfg)
    given.json.write_text(json.dumps({**facts, **figures}, indent=1) + "\n")
    print(table(figures, cfg))


if __name__ == "__main__":
    main()
