"""The export step: a student in a folder that a server needs nothing beside; and how that folder is found and read.

    student/       model.safetensors (the blocks' linears in FP8: model/fp8.py) and config.json
    codec/         model.safetensors and config.json, or what a diffusers VAE's folder has instead
    examples/      start images, their captions, and the actions that the world knows
    export.json    the world's name, the rollout and the actions' unit: those that the evaluation measured with
    manifest.json  size and sha256 of every file

The manifest is the one that every artifact has; it goes with the folder, and `find` checks it wherever the folder lies.
"""

import shutil
from pathlib import Path

import torch

from relic import artifacts, stores
from relic.mistakes import UserError
from relic.model import fp8, weights
from relic.model.transformer import Transformer
from relic.pretrained import codecs
from relic.serve.config import Export
from relic.tracking import Run

SETTINGS = "export.json"


def main(
    cfg: Export, *, student: list[Path], codec: list[Path], evaluation: list[Path], out: Path, run: Run
) -> dict[str, int]:
    """Writes the folder. The evaluation must have judged this student, rounded to FP8 as here, with this codec."""
    measured = artifacts.read_json(evaluation[0] / artifacts.MANIFEST)
    for given, judged in ((student[0], "distilled"), (codec[0], "codec")):
        name = "/".join(artifacts.split(artifacts.uri_of(given))[1:])
        if not any(uri.endswith(f"/{name}") for uri in measured["inputs"][judged]):
            raise UserError(f"the evaluation {evaluation[0]} has not measured {name} as {judged}; give one that has")
    model = weights.load_transformer(student[0])
    fp8.quantise(model)
    weights.save(model, out / "student")
    (out / "codec").mkdir(exist_ok=True)
    for file in codecs.files(codec[0]):
        shutil.copyfile(codec[0] / file, out / "codec" / file)
    shutil.copytree(evaluation[0] / "examples", out / "examples", dirs_exist_ok=True)
    used = measured["parameters"]
    artifacts.write_json(out / SETTINGS, {"name": cfg.name, "rollout": used["rollout"], "actions": used["actions"]})
    sizes = {"student": student[0], "export": out / "student"}
    return {f"{name}_bytes": (folder / "model.safetensors").stat().st_size for name, folder in sizes.items()}


def find(place: str) -> Path:
    """The folder of an export, by its URI or where it was copied to, every file verified."""
    if "://" in place:
        folder = stores.fetch(place)
    else:
        folder = Path(place)
        if not (folder / artifacts.MANIFEST).is_file():
            raise UserError(f"{place} is not an export: it has no {artifacts.MANIFEST}; `relic export` makes one")
        artifacts.verify(folder, artifacts.read_json(folder / artifacts.MANIFEST)["files"])
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{place} is not an export: it has no {SETTINGS}; `relic export` makes one")
    return folder


def load_student(folder: Path, device: torch.device) -> Transformer:
    """The quantised student of an export; `fp8.make_ready` lets it compute."""
    with torch.device("meta"):
        model = Transformer(weights.read_config(folder / "student", "transformer"))
        fp8.quantise(model)
    model.to_empty(device=device)
    weights.load_into(model, folder / "student")
    return model.eval()
