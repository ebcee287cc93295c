"""The evaluation step: every model continues the held-out walks.

Figures, strips and plots become report.json and report.html.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relic import artifacts
from relic.data import clip
from relic.evaluate import page, predict, probes
from relic.evaluate.config import SERVED, Evaluate
from relic.evaluate.walks import Walks, read
from relic.geometry.actions import ACTIONS, STATIC
from relic.model import fp8, weights
from relic.pretrained import codecs, words
from relic.tracking import Run

MIN_SHARE = 0.01  # of the frames: an action that is rarer was not learned
MODELS = {
    "base": "the start weights, before today's walks",
    "teacher": "bidirectional, many steps",
    "student": "causal, four steps, compressed memory",
    "distilled": "the student, distilled on its own videos: what is served",
}


def main(
    cfg: Evaluate,
    *,
    clips: list[Path],
    codec: list[Path],
    estimator: list[Path],
    teacher: list[Path],
    student: list[Path],
    distilled: list[Path],
    out: Path,
    run: Run,
) -> dict[str, float]:
    """Writes report.html, report.json and examples/ (what a served world offers to start from)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder, reader = codecs.load(codec[0], device), weights.load_pose_net(estimator[0], device)
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
        SERVED: distilled[0],
    }
    said = words.of(weights.read_config(distilled[0], "transformer"), cfg.text_encoder, device)
    sizes = usual_sizes(regions)
    done, total = 0, 2 * sum(folder is not None for folder in folders.values()) * sum(map(len, regions))
    total += 5 * len(known) + len(probes.scripts(sizes, 1)) * min(cfg.script_starts, len(known))
    models: dict[str, dict | None] = {}
    generated: dict[str, dict[str, np.ndarray]] = {walks.region: {} for walks in regions}
    for name, folder in folders.items():
        models[name] = None
        if folder is None:
            continue
        model = weights.load_transformer(folder, device)
        if name in ("student", SERVED):  # as they are served: the blocks' linears rounded
            fp8.quantise(model)
            fp8.make_ready(model, decoder.mean.device)
            generate = predict.few_steps(model, cfg)
        else:
            generate = predict.many_steps(model, cfg)

        def make(
            kind: str, walks: Walks, generate: predict.Generate, order: list[int] | None = None,
            *, folder: Path = out / ".generated" / name,
        ) -> np.ndarray:  # fmt: skip
            def advance(count: int) -> None:
                nonlocal done
                done += count
                run.progress(done, total, f"{folder.name}, {kind}")

            given = walks.conditions(said, order)
            return predict.videos(generate, decoder, walks.frames[:, 0], given, cfg, folder / kind, advance)

        found = {}
        for walks in regions:
            true = make(f"{walks.region}-true", walks, generate)
            other = make(f"{walks.region}-other", walks, generate, walks.others())
            found[walks.region] = predict.figures(walks, true, other, cfg.horizon_s)
            generated[walks.region][name] = true
            if walks is known:
                swapped = other
        models[name] = {**found.pop("known"), **found}

    # the last one, which is served, is looked at more closely
    floors = {
        "true video, through the codec": predict.coded(decoder, known.frames, cfg.batch),
        "frozen video": np.repeat(known.frames[:, :1], num_frames, 1),
        "another walk's actions": swapped,
    }
    cameras, unit = probes.cameras(reader, known, floors, generated["known"], cfg)
    scripts = probes.on_scripts(model, reader, known, sizes, unit, make, cfg)
    returns, there_and_back = probes.on_returns(model, known, make, cfg)
    latency = probes.chunk_latency_ms(model, decoder, known, said, cfg)

    entries = [entry for folder in clips for entry in clip.read_index(folder)]
    report = {
        "clips_kept": sum(entry["kept"] for entry in entries),
        "clips_dropped": sum(not entry["kept"] for entry in entries),
        "codec_psnr_db": artifacts.read_json(codec[0] / "manifest.json")["summary"]["codec_psnr_db"],
        "rpe_trans": cameras[SERVED]["rpe_t_1"]["mean"],
        "rpe_rot_deg": cameras[SERVED]["rpe_r_1"]["mean"],
        "rpe_floor_trans": cameras["true video"]["rpe_t_1"]["mean"],
        "rpe_floor_rot_deg": cameras["true video"]["rpe_r_1"]["mean"],
        "revisit_psnr_db": returns["relic"]["gated_psnr_db"],
        "revisit_psnr_window_only_db": returns["window only"]["gated_psnr_db"],
        "revisit_psnr_full_db": returns["full"]["gated_psnr_db"],
        "revisit_psnr_shuffled_db": returns["shuffled"]["gated_psnr_db"],
        "chunk_latency_ms_p50": float(np.median(latency)),
        "models": models,
        "cameras": cameras,
        "scripts": scripts,
        "returns": returns,
        "steps": {
            folder.parent.name: artifacts.read_json(folder / "manifest.json")["summary"]
            for folder in (codec[0], estimator[0], teacher[0], student[0], distilled[0])
        },
    }
    artifacts.write_json(out / "report.json", report)
    write_examples(regions, sizes, out / "examples")
    page.write(out / "report.html", report, MODELS, regions, generated, there_and_back, entries, clips, cfg)
    run.figure(out / "report.html")
    headline = {f"{SERVED}_{key}": value for key, value in (models[SERVED] or {}).items()}
    headline |= {key: value for key, value in report.items() if isinstance(value, float)}
    return {key: value for key, value in headline.items() if isinstance(value, float)}


def usual_sizes(regions: list[Walks]) -> dict[str, float]:
    """The usual size of every action that the world knows."""
    moved = torch.cat([walks.actions[:, 1:].flatten(0, 1) for walks in regions])
    active = moved > 0
    usual = moved.sum(0) / active.sum(0).clamp(min=1)
    known = [i for i in range(STATIC) if active[:, i].double().mean() >= MIN_SHARE]
    return {ACTIONS[i]: round(usual[i].item(), 3) for i in known}


def write_examples(regions: list[Walks], sizes: dict[str, float], folder: Path) -> None:
    """The first frame and caption of the walks: examples.json and one PNG each; world.json: the frame rate and the
    known actions' usual sizes."""
    folder.mkdir(exist_ok=True)
    examples = []
    for walks in regions:
        for id_, caption, place, frames in zip(walks.ids, walks.captions, walks.places, walks.frames, strict=True):
            Image.fromarray(frames[0]).save(folder / f"{id_}.png")
            examples.append({"id": id_, "image": f"{id_}.png", "caption": caption, "place": place})
    artifacts.write_json(folder / "examples.json", examples)
    artifacts.write_json(folder / "world.json", {"fps": regions[0].fps, "actions": sizes})
