"""The evaluation step: every model continues the held-out walks.

Figures, strips and plots become report.json and report.html.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relic import artifacts
from relic.data import clip
from relic.evaluate import page, predict
from relic.evaluate.config import Evaluate
from relic.evaluate.walks import Walks, read
from relic.geometry.actions import ACTIONS, STATIC
from relic.model import weights
from relic.tracking import Run

MIN_SHARE = 0.01  # of the frames: an action that is rarer was not learned
MODELS = {
    "base": "the start weights, before today's walks",
    "teacher": "bidirectional, many steps",
    "student": "causal, four steps, compressed memory",
}


def main(
    cfg: Evaluate,
    *,
    clips: list[Path],
    codec: list[Path],
    teacher: list[Path],
    student: list[Path],
    out: Path,
    run: Run,
) -> dict[str, float]:
    """Writes report.html, report.json and examples/ (what a served world offers to start from)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = weights.load_codec(codec[0], device)
    num_frames = 4 * (cfg.num_latents - 1) + 1
    known = read(clips, "known", cfg.known, num_frames, cfg.actions)
    unseen = read(clips, "unseen", cfg.unseen, num_frames, cfg.actions)
    if known is None:
        raise ValueError("fewer than 2 test walks of known maps are kept; record more or loosen the filters")
    regions = [known, unseen] if unseen else [known]
    folders = {
        "base": weights.start_folder(cfg.base) if cfg.base else None,
        "teacher": teacher[0],
        "student": student[0],
    }
    models: dict[str, dict | None] = {}
    generated: dict[str, dict[str, np.ndarray]] = {walks.region: {} for walks in regions}
    for name, folder in folders.items():
        models[name] = None
        if folder is None:
            continue
        model = weights.load_transformer(folder, device)
        generate = (predict.few_steps if name == "student" else predict.many_steps)(model, cfg)
        found = {}
        for walks in regions:
            true, other = predict.videos(
                generate, decoder, walks, model.cfg.text_tokens, cfg, out / ".generated" / name, run
            )
            found[walks.region] = predict.figures(walks, true, other, cfg.horizon_s)
            generated[walks.region][name] = true
        models[name] = {**found.pop("known"), **found}

    entries = [entry for folder in clips for entry in clip.read_index(folder)]
    report = {
        "clips_kept": sum(entry["kept"] for entry in entries),
        "clips_dropped": sum(not entry["kept"] for entry in entries),
        "codec_psnr_db": artifacts.read_json(codec[0] / "manifest.json")["summary"]["codec_psnr_db"],
        "models": models,
        "steps": {
            folder.parent.name: artifacts.read_json(folder / "manifest.json")["summary"]
            for folder in (codec[0], teacher[0], student[0])
        },
    }
    artifacts.write_json(out / "report.json", report)
    write_examples(regions, out / "examples")
    page.write(out / "report.html", report, MODELS, regions, generated, entries, clips, cfg)
    headline = models["student"] or {}
    return {f"student_{key}": value for key, value in headline.items() if isinstance(value, float)}


def write_examples(regions: list[Walks], folder: Path) -> None:
    """The first frame and caption of the walks: examples.json and one PNG each; world.json: the usual size of every
    action that the world knows."""
    folder.mkdir(exist_ok=True)
    examples = []
    for walks in regions:
        for id_, caption, place, frames in zip(walks.ids, walks.captions, walks.places, walks.frames, strict=True):
            Image.fromarray(frames[0]).save(folder / f"{id_}.png")
            examples.append({"id": id_, "image": f"{id_}.png", "caption": caption, "place": place})
    artifacts.write_json(folder / "examples.json", examples)
    moved = torch.cat([walks.actions[:, 1:].flatten(0, 1) for walks in regions])
    active = moved > 0
    usual = moved.sum(0) / active.sum(0).clamp(min=1)
    known = [i for i in range(STATIC) if active[:, i].double().mean() >= MIN_SHARE]
    sizes = {ACTIONS[i]: round(usual[i].item(), 3) for i in known}
    artifacts.write_json(folder / "world.json", {"fps": regions[0].fps, "actions": sizes})
