"""Draws docs/*.svg from the committed figures in benchmarks/results/*.json; a result that is not there is left out.

    python benchmarks/figures.py
    python benchmarks/figures.py --format png --out out

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and lines tell them apart in grey too.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

ROOT = Path(__file__).parents[1]
MIB = 2**20
POLICIES = {  # colour, marker, line
    "full": ("#0072b2", "s", "-"),
    "window": ("#7f7f7f", "v", ":"),
    "relic": ("#d55e00", "o", "-"),
    "relic_landmarks": ("#009e73", "D", "--"),
}
METRICS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "place": "places recognised, share"}
STYLE: Any = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "relic",  # the same file from the same figures
}


def replay_memory(result: dict[str, Any]) -> Figure:
    """Bytes and seconds of both ways against the number of chunks."""
    rows, (figure, (memory, time)) = result["rows"], panels(1, 2)
    chunks = [row["chunks"] for row in rows]
    ways = {
        "full graph": (POLICIES["full"], "full_graph_peak_bytes", "full_graph_s"),
        "replay": (POLICIES["relic"], "replay_peak_bytes", "replay_s"),
        "whole update": (POLICIES["relic_landmarks"], "update_peak_bytes", ""),
    }
    for name, (look, num_bytes, seconds) in ways.items():
        line(memory, chunks, [row[num_bytes] / MIB for row in rows], name, look)
        if seconds:
            line(time, chunks, [row[seconds] for row in rows], name, look)
    doubling(memory, chunks, "chunks in the video", "peak, MiB", "kept by autograd, and all of an update")
    doubling(time, chunks, "chunks in the video", "time, s", "rollout and its gradient")
    return named(figure)


def rollout(result: dict[str, Any]) -> Figure:
    """Time of a chunk and the memory's bytes against the horizon, by policy."""
    figure, (time, memory) = panels(1, 2)
    for policy, look in POLICIES.items():
        rows = [row for row in result["rows"] if row["policy"] == policy]
        horizons = [row["latents"] for row in rows]
        line(time, horizons, [row["chunk_ms"] for row in rows], policy, look)
        line(memory, horizons, [row["memory_bytes"] / MIB for row in rows], policy, look)
    horizons = sorted({row["latents"] for row in result["rows"]})
    doubling(time, horizons, "length of the walk, latents", "time, ms", "one chunk")
    doubling(memory, horizons, "length of the walk, latents", "storage, MiB", "memory")
    return named(figure)


def memory(result: dict[str, Any]) -> Figure:
    """What is kept of a place against the time away from it, with 95 % intervals: a column a world."""
    rows = result["policies"]
    worlds = [world for world in dict.fromkeys(row["world"] for row in rows) if "+" not in world]
    bins = sorted({tuple(row["away_frames"]) for row in rows})
    if len(bins) > 1:
        bins.remove((bins[0][0], bins[-1][1]))  # all of them together
    figure, axes = panels(len(METRICS), len(worlds), height=1.9)
    for place, (metric, world) in enumerate((metric, world) for metric in METRICS for world in worlds):
        for step, (policy, look) in enumerate(POLICIES.items()):
            found = {
                tuple(row["away_frames"]): row
                for row in rows
                if (row["metric"], row["world"], row["policy"]) == (metric, world, policy)
            }
            shown = [
                (bins.index(away) + 0.07 * (step - 1.5), row) for away, row in sorted(found.items()) if away in bins
            ]
            bars(axes[place], shown, policy, look)
        axes[place].set_xticks(range(len(bins)), [f"{start}–{stop}" for start, stop in bins])
        axes[place].set_title(world if place < len(worlds) else "")
        axes[place].set_ylabel(METRICS[metric] if place % len(worlds) == 0 else "")
        axes[place].set_xlabel("time away, frames" if place >= len(axes) - len(worlds) else "")
    return named(figure)


def scaling(result: dict[str, Any]) -> Figure:
    """What the planner says against what was measured, a mark a configuration; on the line they are equal."""
    figure, axes = panels(1, 2)
    for panel, (name, title) in zip(axes, (("sent", "sent in a step"), ("peak", "peak of a process")), strict=True):
        for zero, (colour, marker, _) in enumerate(POLICIES.values()):
            rows = [row for row in result["rows"] if row["zero"] == zero and row[f"{name}_bytes"]]
            points = [(row[f"{name}_bytes"] / MIB, row[f"planned_{name}_bytes"] / MIB) for row in rows]
            panel.plot(*zip(*points, strict=True), marker, color=colour, label=f"ZeRO {zero}", fillstyle="none")
        panel.axline((1, 1), (2, 2), color="#7f7f7f", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel="measured, MiB", ylabel="planned, MiB", title=title)
    return named(figure)


def panels(rows: int, columns: int, *, height: float = 2.6) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.6 * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def named(figure: Figure) -> Figure:
    """With the names of the first panel's lines above all panels."""
    found = figure.axes[0].get_legend_handles_labels()
    figure.legend(*found, loc="outside upper center", ncols=len(found[1]))
    return figure


def line(axes: Axes, x: list[int], y: list[float], name: str, look: tuple[str, str, str]) -> None:
    colour, marker, style = look
    axes.plot(x, y, style, color=colour, marker=marker, label=name)


def bars(axes: Axes, shown: list[tuple[float, dict[str, Any]]], name: str, look: tuple[str, str, str]) -> None:
    """Means with their intervals."""
    colour, marker, style = look
    means = [row["mean"] for _, row in shown]
    spread = [[row["mean"] - row["low"] for _, row in shown], [row["high"] - row["mean"] for _, row in shown]]
    axes.errorbar(
        [x for x, _ in shown], means, spread, fmt=style, color=colour, marker=marker, label=name, elinewidth=1
    )


def doubling(axes: Axes, ticks: list[int], x: str, y: str, title: str) -> None:
    """Both axes by factors, so that what doubles with the length is a straight line and what does not grow is level."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


DRAWN = {"replay_memory": replay_memory, "rollout": rollout, "memory": memory, "scaling": scaling}


def draw(results: Path, out: Path, ending: str) -> list[Path]:
    """The files that were drawn."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure_of in DRAWN.items():
        if (results / f"{name}.json").exists():
            drawn.append(out / f"{name}.{ending}")
            with matplotlib.rc_context(STYLE):
                figure = figure_of(json.loads((results / f"{name}.json").read_text()))
                figure.savefig(drawn[-1], dpi=150, metadata={"Date": None} if ending == "svg" else None)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--format", default="svg", choices=("svg", "png"))
    given = parser.parse_args(arguments)
    for path in draw(given.results, given.out, given.format):
        print(path)


if __name__ == "__main__":
    main()
