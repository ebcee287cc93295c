"""The report as one HTML file that needs nothing beside it: strips, curves, tracks, and what was dropped and why."""

import base64
import io
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from relic import artifacts
from relic.data import clip, curation_report
from relic.data.curation_report import data_uri, table
from relic.evaluate.config import SERVED, Evaluate
from relic.evaluate.predict import psnr
from relic.evaluate.walks import Walks

matplotlib.use("Agg")
COLOURS = {
    "base": "#98a1b0", "teacher": "#4c78a8", "student": "#e07b39", "distilled": "#54a24b", "still": "#1d2430",
}  # fmt: skip
SHOWN_S = (0.0, 0.25, 0.5, 1.0, 1.5, 2.25, 3.0, 3.75)  # the moments of a strip
STYLE = (
    curation_report.STYLE
    + """
.lead { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 }
.figure { background: #fff; border: 1px solid #e2e5ea; border-radius: 6px; padding: 10px 14px }
.figure b { font-size: 22px; display: block }
.rows { display: grid; grid-template-columns: 64px 1fr; gap: 3px 8px; align-items: center;
  font-size: 12px; color: #667085 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px } .pair img { width: 100% }
@media (max-width: 760px) { .pair { display: block } }
"""
)


def write(
    path: Path,
    report: dict,
    about: dict[str, str],
    regions: list[Walks],
    generated: dict[str, dict[str, np.ndarray]],
    there_and_back: dict[str, np.ndarray],
    entries: list[dict],
    folders: list[Path],
    cfg: Evaluate,
) -> None:
    """Write report.html. `generated` holds videos uint8 [n, F_px, H, W, 3] by region and model, `there_and_back` those
    of the walks that return, by memory."""
    known = report["models"]
    body = [
        "<h1>A world you can walk in</h1>",
        "<p class=soft>Every model sees one real frame of a walk that it was not trained on, "
        "and the actions that followed.</p>",
        lead(report),
        "<h2>Models</h2>",
        models(known, about, cfg.horizon_s),
        "<h2>Training steps</h2>",
        training(report["steps"]),
        "<div class=pair><div class=plot><b>PSNR to the true frames, known maps</b>",
        curves(regions[0], generated[regions[0].region]),
        "</div><div class=plot><b>Tracks of the walks, from above</b>",
        tracks(regions[0]),
        "</div></div>",
        "<h2>Does the camera go where the actions say?</h2>",
        "<p class=soft>Cameras are read from the videos by a small network trained on the recorded walks. Its own "
        "error on the true videos, and on what the codec keeps of them, is the floor; a frozen video and another "
        "walk's actions are what a model must beat. Relative pose errors over 1 and 16 frames: translation in mean "
        "steps, rotation in degrees, failed estimates counted as a camera at rest; estimates: how many did not fail, "
        "of the walks whose camera moves.</p>",
        cameras("video", report["cameras"]),
        "<h3>One action at a time, and walking while turning</h3>",
        cameras("script", report["scripts"]),
        "<h2>Does a place look the same on the way back?</h2>",
        "<p class=soft>Walks that turn after two thirds and go back the same way, in known maps. PSNR between the "
        "frames at which the camera is back and the same video's earlier ones; a return counts only as far as the "
        "picture was another in between, so that a frozen video earns nothing. Shuffled: the pooled tokens' values "
        "have changed places. Another walk's: what another walk has pooled lies in the memory. The last two columns "
        "say by how much RELIC's memory is better, walk by walk, with the standard error, and in how many walks.</p>",
        returns(report["returns"]),
        *[memory_strip(there_and_back, i) for i in range(min(3, len(there_and_back["true"])))],
    ]
    for walks in regions:
        body.append(f"<h2>Held-out walks, {walks.region} maps</h2>")
        body += [strips(walks, generated[walks.region], i) for i in range(min(cfg.strips, len(walks)))]
    dropped = [entry for entry in entries if not entry["kept"]]
    body += [
        "<h2>Clips</h2>",
        f"<p class=soft>{report['clips_kept']} kept, {report['clips_dropped']} dropped.</p>",
        curation_report.regions(entries),
        "<h3>Dropped, and why</h3>",
        curation_report.reasons(dropped),
    ]
    body += [curation_report.strip(entry, frames_of(folders, entry)) for entry in curation_report.examples(dropped)[:6]]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>relic: report</title><style>{STYLE}</style><body>"
    artifacts.write_bytes(path, (head + "\n".join(body) + "</body></html>").encode())


def frames_of(folders: list[Path], entry: dict) -> np.ndarray:
    folder = next(folder for folder in folders if entry in clip.read_index(folder))
    return clip.read_clip(folder, entry).frames


def lead(report: dict) -> str:
    served = report["models"][SERVED]

    def counted(name: str) -> str:
        return "–" if report[name] is None else f"{report[name]:.1f} dB"

    cards = [
        (f"{served['psnr_gain_over_still_db']:+.2f} dB", "the served model over repeating the frame, first second"),
        (f"{served['action_win_rate']:.0%}", "of its videos nearer the truth than with another walk's actions"),
        (counted("revisit_psnr_db"), f"at returns, PSNR times the gate; {counted('revisit_psnr_window_only_db')} "
         "without the compressed memory"),
        (f"{report['chunk_latency_ms_p50']:.0f} ms", "a chunk of frames, decoded"),
        (str(report["clips_kept"]), f"clips kept, {report['clips_dropped']} dropped"),
    ]  # fmt: skip
    return "<div class=lead>" + "".join(f"<div class=figure><b>{b}</b>{escape(t)}</div>" for b, t in cards) + "</div>"


def models(found: dict, about: dict[str, str], horizon_s: float) -> str:
    """A row a model, known maps beside unseen ones."""
    rows = []
    for name, figures in found.items():
        if figures is None:
            rows.append([name, "none: trained from nothing", *["–"] * 5])
            continue
        unseen = figures.get("unseen", {})
        row = [name, about[name], f"{figures['psnr_db']:.2f}", f"{figures['psnr_gain_over_still_db']:+.2f}"]
        row += [f"{figures['action_win_rate']:.0%} of {figures['walks']}"]
        row += [
            f"{unseen[k]:{f}}" if k in unseen else "–"
            for k, f in (("psnr_gain_over_still_db", "+.2f"), ("action_win_rate", ".0%"))
        ]
        rows.append(row)
    head = [
        "model",
        "",
        "PSNR dB",
        "gain over still dB",
        "action win rate",
        "gain, unseen maps",
        "win rate, unseen maps",
    ]
    note = f"Means over the first {horizon_s:g} s. Still: repeating the given frame. {distillation(found)}"
    return table(head, rows) + f"<p class=soft>{note}</p>"


def distillation(found: dict) -> str:
    """What the last training step has done to the figures, in words."""
    said = []
    for key, what, form in (("psnr_gain_over_still_db", "gain", "+.3f"), ("action_win_rate", "win rate", ".1%")):
        before, after = found["student"][key], found[SERVED][key]
        verdict = "better" if after > before else "not improved" if after == before else "worse"
        said.append(f"{what} {verdict} ({before:{form}} to {after:{form}})")
    return f"What distillation did: {', '.join(said)}."


def cameras(what: str, found: dict[str, dict]) -> str:
    """A row a video: errors of its camera and how well it does what the actions say."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    rows: list[list[object]] = []
    for name, figures in found.items():
        errors = [figures[key] for key in ("rpe_t_1", "rpe_t_16", "rpe_r_1", "rpe_r_16")]
        row: list[object] = [name, *(shown(error["mean"], ".2f") for error in errors)]
        row += [f"{errors[0]['n_ok']} / {errors[0]['n']}", shown(figures["following"]["balanced_accuracy"], ".0%")]
        axes = {name: axis for name, axis in figures["following"]["axes"].items() if axis}
        if what == "script":  # of one motion, without end: any guess of it is always right
            row.append(", ".join(f"{name} {shown(axis['slope'], '.2f')}" for name, axis in axes.items()))
        else:
            row.append(shown(sum(axis["chance"] for axis in axes.values()) / len(axes) if axes else None, ".0%"))
        rows.append(row)
    last = "how much of it comes" if what == "script" else "chance"
    head = [what, "RPE-t, 1", "RPE-t, 16", "RPE-r, 1", "RPE-r, 16", "estimates", "moves as asked, balanced", last]
    return table(head, rows)


def returns(found: dict[str, dict]) -> str:
    """A row a memory: how like itself a place is on the way back."""
    keys = ("gated_psnr_db", "psnr_db", "psnr_to_truth_db")
    rows: list[list[object]] = []
    for name, figures in found.items():
        row = [name, *("–" if figures[key] is None else f"{figures[key]:.2f}" for key in keys)]
        for less in figures["behind_relic"].values():
            same = less is None or name in ("true", "still", "relic")
            row.append("–" if same else f"{less['mean']:.2f} ± {less['error']:.2f}, {less['better_in']}")
        rows.append([*row, figures["walks"]])
    head = ["memory", "at the return, counted", "at the return, dB", "to the true frames, dB"]
    return table([*head, "RELIC's better at the return, dB", "and to the true frames, dB", "walks"], rows)


def memory_strip(videos: dict[str, np.ndarray], index: int) -> str:
    """One walk there and back: the true frames above every memory's."""
    last = videos["true"].shape[1] - 1
    moments = [last * sixth // 6 for sixth in range(7)]  # it turns at the fifth of these
    return f"<div class=strip><div class=rows>{picture_rows(videos, index, moments)}</div></div>"


def picture_rows(videos: dict[str, np.ndarray], index: int, moments: list[int]) -> str:
    """Frames of one walk at some moments, a row a video."""
    rows = []
    for name, video in videos.items():
        pictures = "".join(
            f'<figure><img src="{data_uri(video[index][t])}" alt="{name}, frame {t}"></figure>' for t in moments
        )
        rows.append(f"<span>{name}</span><div class=frames>{pictures}</div>")
    return "".join(rows)


def training(steps: dict[str, dict[str, float]]) -> str:
    """What each training step began and ended with, on data or samples that do not change."""
    codec: dict[str, float] = steps["codec"]
    rows: list[list[object]] = []
    rows.append(
        ["codec: PSNR of test walks, dB", f"{codec['codec_psnr_db_before']:.2f}", f"{codec['codec_psnr_db']:.2f}"]
    )
    for key, what in (("rot_deg", "rotation error a frame, degrees"), ("trans", "translation error a frame, steps")):
        pose_net = steps["pose-net"]
        rows.append([f"pose-net: {what}", f"{pose_net[f'{key}_before']:.2f}", f"{pose_net[key]:.2f}"])
    named = {
        "teacher": "error of the velocity",
        "student-init": "error of the jumps",
        "distill": "distance of its own videos to the true ones",
    }
    for name, what in named.items():
        rows.append([f"{name}: {what}", f"{steps[name]['loss_before']:.4f}", f"{steps[name]['loss']:.4f}"])
    return table(["step", "before", "after"], rows)


def strips(walks: Walks, generated: dict[str, np.ndarray], index: int) -> str:
    """One walk: the true frames above every model's."""
    moments = [round(s * walks.fps) for s in SHOWN_S if round(s * walks.fps) < walks.frames.shape[1]]
    rows = picture_rows({"true": walks.frames, **generated}, index, moments)
    times = "".join(f"<figure><figcaption>{t / walks.fps:.2f} s</figcaption></figure>" for t in moments)
    rows += f"<span></span><div class=frames>{times}</div>"
    return (
        f"<div class=strip><p><b>{escape(walks.ids[index])}</b> {escape(walks.captions[index])}</p>"
        f"<div class=rows>{rows}</div></div>"
    )


def curves(walks: Walks, generated: dict[str, np.ndarray]) -> str:
    """Mean PSNR over time, a line a model."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    still = np.repeat(walks.frames[:, :1], walks.frames.shape[1], 1)
    for name, video in {"still": still, **generated}.items():
        line = psnr(video, walks.frames).mean(0)[1:]
        axes.plot(
            np.arange(1, len(line) + 1) / walks.fps, line, label=name, color=COLOURS[name],
            linestyle="--" if name == "still" else "-",
        )  # fmt: skip
    axes.set(xlabel="seconds", ylabel="dB")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    return picture(figure)


def tracks(walks: Walks) -> str:
    """Each walk's track from above, in mean steps, starting at the dot with the view upwards."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for pose in walks.poses.numpy():
        axes.plot(pose[:, 0, 3], pose[:, 2, 3], linewidth=1.2, alpha=0.8)
    axes.plot(0, 0, "o", color="#1d2430", markersize=4)
    axes.set(xlabel="right, mean steps", ylabel="forward, mean steps")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.2)
    return picture(figure)


def picture(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f'<img alt="plot" src="data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}">'
