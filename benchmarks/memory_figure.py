"""Draws what benchmarks/memory.py has measured: PSNR to the truth against the time away, a line a policy.

python benchmarks/memory_figure.py benchmarks/results/memory.json docs/memory_remember.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LINES = {
    "codec": ("the true way back, through the codec", "0.6"),
    "full": ("full", "black"),
    "relic_landmarks": ("relic_landmarks", "tab:green"),
    "relic": ("relic", "tab:blue"),
    "relic_plain": ("relic, pooled tokens not weighed", "tab:cyan"),
    "window": ("window", "tab:red"),
}
FPS = 16


def draw(found: dict, path: Path) -> None:
    """A panel a world; bars are 95 % intervals, the points of one bin side by side."""
    rows = [row for row in found["policies"] if row["metric"] == "psnr_db"]
    worlds = [world for world in dict.fromkeys(row["world"] for row in rows) if "+" not in world]
    figure, panels = pyplot.subplots(
        1, len(worlds), figsize=(5 * len(worlds), 4.5), squeeze=False, layout="constrained"
    )
    for world, panel in zip(worlds, panels[0], strict=True):
        mine = [row for row in rows if row["world"] == world]
        longest = max(stop - start for start, stop in (row["away_frames"] for row in mine))
        for place, (policy, (label, colour)) in enumerate(LINES.items()):
            of = [r for r in mine if r["policy"] == policy and r["away_frames"][1] - r["away_frames"][0] < longest]
            at = [row["mean_away_frames"] / FPS + 0.05 * (place - 2.5) for row in of]
            means = [row["mean"] for row in of]
            bars = [[r["mean"] - r["low"] for r in of], [r["high"] - r["mean"] for r in of]]
            panel.errorbar(at, means, yerr=bars, label=label, color=colour, marker="o", markersize=3, capsize=2)
        panel.set(title=world, xlabel="seconds since the view was last seen", ylabel="PSNR to the truth, dB")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("figure", type=Path)
    given = parser.parse_args()
    draw(json.loads(given.json.read_text()), given.figure)


if __name__ == "__main__":
    main()
