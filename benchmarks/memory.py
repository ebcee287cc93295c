"""Does memory remember? Walks that leave and come back, seen anew under each policy of the memory.

    python benchmarks/memory.py --recipe memory_tiny --out out/memory --json benchmarks/results/memory.json
    python benchmarks/memory.py --recipe memory_tiny --out out/memory --mark 450 --json figures.json  # that early

Records walks, trains one model for all policies (returning.py) and measures it in worlds it has not seen; what lies in
the folder is not made again. A walk's way out is true video, put into the memory by `Rollout.see`; its way back is
generated (revisited.py), and its truth is the way out.
"""

import argparse
import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from measure import facts
from returning import RECIPES, Recipe, memories, num_latents, recorded, tokens_shown, train
from revisited import POOLED, Seen, measured

from relic.evaluate import likeness
from relic.model import weights

METRICS = ("psnr_db", "ssim", "place")
PAIRS = (
    ("full", "window"), ("relic", "window"), ("relic_landmarks", "window"), ("relic", "full"),
    ("relic_landmarks", "relic"), ("relic", "relic_plain"),
)  # fmt: skip
Away = tuple[int, int]  # frames, from and to


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
    policies = list(dict.fromkeys(policy for _, _, policy in found))
    rows: dict[str, list[dict]] = {"policies": [], "differences": [], "shares": []}
    for worlds, away, metric in product([*([w] for w in cfg.worlds), list(cfg.worlds)], bins(cfg), METRICS):
        of = {policy: by_clip(found, cfg, worlds, policy, metric, away) for policy in policies}
        if len(of["full"]) < 2:
            continue
        every = np.concatenate([found[w, way, "full"].away.ravel() for w in worlds for way in cfg.measured])
        counted = every[(every >= away[0]) & (every < away[1])]
        about = {
            "world": " + ".join(worlds), "away_frames": away, "mean_away_frames": float(counted.mean()),
            "clips": len(of["full"]), "frames": len(counted), "metric": metric,
        }  # fmt: skip
        for policy, values in of.items():
            rows["policies"].append({**about, "policy": policy, **likeness.interval(values)._asdict()})
        for policy, other in PAIRS:
            less = likeness.interval(of[policy] - of[other])
            rows["differences"].append({**about, "policy": policy, "less": other, **less._asdict()})
        for policy in [p for p in policies if p not in ("codec", "full", "window")]:
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
        columns = list(dict.fromkeys(row["away_frames"] for row in mine))
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


def written(found: dict) -> str:
    """JSON, a line a row, of numbers with four decimals."""
    lines = []
    for name, value in found.items():
        rows = value if isinstance(value, list) else []
        short = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        text = "[\n " + ",\n ".join(map(json.dumps, short)) + "\n]" if rows else json.dumps(value)
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def shown(row: dict) -> str:
    return f"{row['mean']:.2f} ({row['low']:.2f}, {row['high']:.2f})"


def facts_of(cfg: Recipe, device: str) -> dict:
    """What made the figures."""
    trained = {"trained_on": cfg.clips, "steps": cfg.steps, "latents_a_step": cfg.latents}
    return {**facts(torch.device(device)), "recipe": cfg.name, "walks": cfg.walks, **trained}


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
    codec = weights.load_codec(weights.start_folder(cfg.codec), device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    clips = {world: recorded(cfg, world, "unseen", cfg.walks, given.out) for world in cfg.worlds}
    policies = ["codec", *memories(cfg, cfg.measured[0]), *([] if given.mark else POOLED)]
    about = {**facts_of(cfg, device), "measured_after": step, "tokens": tokens(cfg)}
    figures = rows_of(measured(cfg, model, codec, clips, folder, policies), cfg)
    given.json.write_text(written({**about, **figures}))
    print(table(figures, cfg))


if __name__ == "__main__":
    main()
