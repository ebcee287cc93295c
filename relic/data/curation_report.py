"""The report of a curation: what was kept, what was dropped and why, and every measure's histogram with its threshold.

One HTML file that needs nothing beside it: frames are data URIs, plots are inline SVG."""

import base64
import io
from collections import defaultdict
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from relic import artifacts
from relic.data.config import REGIONS
from relic.geometry.actions import ACTIONS

STRIP = 7  # frames
MAX_KEPT = 3  # strips a region
MAX_DROPPED = 3  # strips a measure
BINS = 40

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #f6f7f9; margin: 0 auto; padding: 24px }
body { max-width: 1180px }
h1 { margin: 0 0 4px } h2 { margin: 36px 0 8px } h3 { margin: 18px 0 4px; font-size: 15px } .soft { color: #667085 }
table { border-collapse: collapse; background: #fff }
td, th { padding: 4px 14px; border: 1px solid #e2e5ea; text-align: right }
td:first-child, th:first-child { text-align: left }
.strip, .plot { background: #fff; border: 1px solid #e2e5ea; border-radius: 4px; padding: 8px 10px }
.strip { border-left: 4px solid #3b9a61; margin: 8px 0 }
.strip.dropped { border-left-color: #c8553d } .strip p { margin: 0 0 6px }
.frames { display: flex; gap: 4px } figure { margin: 0; flex: 1 1 0 }
figcaption { font-size: 11px; color: #98a1b0; text-align: center }
.frames img { width: 100%; display: block; image-rendering: pixelated } .bad img { outline: 2px solid #c8553d }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 12px }
.plot b { font-size: 13px } svg { width: 100%; display: block }
"""


Thresholds = dict[str, dict[str, float]]  # {filter: {measure: threshold}}


def write(path: Path, entries: list[dict], thresholds: Thresholds, frames_of: Callable[[dict], np.ndarray]) -> None:
    """Write the report of clips' entries; `frames_of` gives an entry's frames, uint8 [T, H, W, 3]."""
    kept = [entry for entry in entries if entry["kept"]]
    dropped = [entry for entry in entries if not entry["kept"]]
    seconds = sum(entry["num_frames"] / entry["fps"] for entry in kept)
    body = [
        "<h1>Curation</h1>",
        f"<p class=soft>{len(kept)} of {len(entries)} clips kept, {seconds:.0f} s; {len(dropped)} dropped.</p>",
        regions(entries),
        "<h2>Dropped, and why</h2>",
        reasons(dropped),
        *[strip(entry, frames_of(entry)) for entry in examples(dropped)],
        "<h2>Kept</h2>",
        *[
            strip(entry, frames_of(entry))
            for region in REGIONS
            for entry in spread([e for e in kept if e["region"] == region])
        ],
        "<h2>Actions</h2><p class=soft>Share of the kept clips' frames in which an action is active.</p>",
        actions(kept),
        "<h2>Measures</h2><p class=soft>All clips; the line is the threshold, red is what lies beyond it.</p>",
        histograms(entries, thresholds),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>relic: curation</title><style>{STYLE}</style>"
    artifacts.write_bytes(path, (head + "<body>" + "\n".join(body) + "</body></html>").encode())


def table(head: list[str], rows: list[list[object]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + f"</tr>{cells}</table>"


def regions(entries: list[dict]) -> str:
    """Kept and dropped a region and place."""
    count: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        count[entry["region"], entry["place"]][0 if entry["kept"] else 1] += 1
    order = sorted(count, key=lambda key: (REGIONS.index(key[0]), key[1]))
    return table(["region", "place", "kept", "dropped"], [[*key, *count[key]] for key in order])


def reasons(dropped: list[dict]) -> str:
    """How many clips each measure dropped; a clip may have several reasons."""
    if not dropped:
        return "<p>Nothing was dropped.</p>"
    count: dict[tuple[str, str, float], int] = defaultdict(int)
    for entry in dropped:
        for reason in entry["reasons"]:
            count[reason["filter"], reason["metric"], reason["threshold"]] += 1
    rows = [[*key, number] for key, number in sorted(count.items(), key=lambda item: -item[1])]
    return table(["filter", "measure", "threshold", "clips"], rows)


def examples(dropped: list[dict]) -> list[dict]:
    """A few dropped clips of every measure, each clip once."""
    found: dict[str, dict] = {}
    number: dict[str, int] = defaultdict(int)
    for entry in dropped:
        metric = entry["reasons"][0]["metric"]
        if number[metric] < MAX_DROPPED:
            number[metric] += 1
            found[entry["id"]] = entry
    return list(found.values())


def spread(entries: list[dict]) -> list[dict]:
    """MAX_KEPT entries, evenly spaced."""
    picked = np.linspace(0, len(entries) - 1, min(MAX_KEPT, len(entries))).round().astype(int)
    return [entries[index] for index in picked]


def strip(entry: dict, frames: np.ndarray) -> str:
    """A row of a clip's frames with its caption and reasons; the frames of the first reason are outlined."""
    bad = entry["reasons"][0]["frames"] if entry["reasons"] else [-1, -1]
    short = bad[1] - bad[0] < len(frames) - 2  # a reason about the whole clip points at no frame
    shown = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    if entry["reasons"] and short:
        shown = np.clip(np.arange(STRIP) - STRIP // 2 + sum(bad) // 2, 0, len(frames) - 1)
    pictures = "".join(
        f"<figure{' class=bad' if short and bad[0] <= t <= bad[1] else ''}>"
        f'<img src="{data_uri(frames[t])}" alt="frame {t}"><figcaption>{t}</figcaption></figure>'
        for t in shown
    )
    why = "; ".join(
        f"{r['filter']}: {r['metric']} {r['value']:.3g}, threshold {r['threshold']:.3g}" for r in entry["reasons"]
    )
    return (
        f'<div class="strip{" dropped" if entry["reasons"] else ""}"><p><b>{escape(entry["id"])}</b> '
        f"{escape(entry['caption'])} <span class=soft>{escape(why)}</span></p><div class=frames>{pictures}</div></div>"
    )


def data_uri(frame: np.ndarray) -> str:
    """A frame uint8 [H, W, 3] as a JPEG at most 320 pixels wide."""
    picture = Image.fromarray(frame)
    picture.thumbnail((320, 320))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def actions(kept: list[dict]) -> str:
    """A bar an action."""
    shares = np.mean([entry["action_share"] for entry in kept], 0) if kept else np.zeros(len(ACTIONS))
    bars = "".join(
        f"<text x=96 y={18 * row + 14} text-anchor=end font-size=11>{name}</text>"
        f'<rect x=102 y={18 * row + 4} width={500 * share:.1f} height=12 fill="#4c78a8" />'
        f'<text x={108 + 500 * share:.1f} y={18 * row + 14} font-size=10 fill="#667085">{share:.0%}</text>'
        for row, (name, share) in enumerate(zip(ACTIONS, shares, strict=True))
    )
    return f'<div class=plot style="max-width:660px"><svg viewBox="0 0 650 {18 * len(ACTIONS) + 6}">{bars}</svg></div>'


def histograms(entries: list[dict], thresholds: Thresholds) -> str:
    """A plot a measure, all of them drawn alike."""
    plots = []
    for name, of_filter in thresholds.items():
        for metric, threshold in of_filter.items():
            values = [e["measures"][name][metric] for e in entries if metric in e["measures"].get(name, {})]
            picture = histogram(np.array(values), metric, threshold)
            plots.append(f"<div class=plot><b>{name}: {metric}</b>{picture}</div>")
    return f"<div class=plots>{''.join(plots)}</div>"


def histogram(values: np.ndarray, metric: str, threshold: float) -> str:
    """Values as bars, from the smallest to the largest of them and the threshold."""
    if not len(values):
        return "<p class=soft>not measured: the source has no depth, or nothing moves</p>"
    low, high = min(values.min(), threshold, 0.0), max(values.max(), threshold)
    counts, edges = np.histogram(values, BINS, (low, high * 1.02 + 1e-9))
    middle = (edges[1:] + edges[:-1]) / 2
    beyond = middle > threshold if metric.startswith("max_") else middle < threshold
    line = 6 + 258 * (threshold - edges[0]) / (edges[-1] - edges[0])
    bars = "".join(
        f'<rect x={6 + 258 * i / BINS:.1f} y={80 - 70 * n / counts.max():.1f} width={258 / BINS - 0.6:.1f} '
        f'height={70 * n / counts.max():.1f} fill="{"#c8553d" if bad else "#4c78a8"}" />'
        for i, (n, bad) in enumerate(zip(counts, beyond, strict=True)) if n
    )  # fmt: skip
    return (
        f'<svg viewBox="0 0 270 98">{bars}'
        f'<line x1={line:.1f} x2={line:.1f} y1=4 y2=80 stroke="#1d2430" stroke-dasharray="3 2" />'
        f'<text x=6 y=94 font-size=10 fill="#667085">{edges[0]:.3g}</text>'
        f'<text x=264 y=94 font-size=10 fill="#667085" text-anchor=end>{edges[-1]:.3g}</text>'
        f"<text x=135 y=94 font-size=10 text-anchor=middle>threshold {threshold:.4g}</text></svg>"
    )
