"""The export step: a student in a folder that a server needs nothing beside; and how that folder is found and read.

    student/       model.safetensors (the blocks' linears in FP8: model/fp8.py) and config.json
    codec/         model.safetensors and config.json, or what a diffusers VAE's folder has instead
    examples/      start images, their captions, and the actions that the world knows
    export.json    the world's name, the rollout and the actions' unit: those that the evaluation measured with
    manifest.json  size and sha256 of every file

The manifest is the one that every artifact has; it goes with the folder, and `find` checks it wherever the folder lies.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relic import artifacts, stores
from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS
from relic.memory.config import Memory
from relic.mistakes import UserError
from relic.model import fp8, weights
from relic.model.transformer import Transformer
from relic.pretrained import codecs
from relic.serve.config import Export, Serve
from relic.serve.world import Example, World
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


def folder_of(cfg: Serve) -> Path:
    """The folder of the export, every file verified."""
    return find(cfg.export or export_of(Path(cfg.run)))


def load_student(folder: Path, device: torch.device) -> Transformer:
    """The quantised student of an export; `fp8.make_ready` lets it compute."""
    with torch.device("meta"):
        model = Transformer(weights.read_config(folder / "student", "transformer"))
        fp8.quantise(model)
    model.to_empty(device=device)
    weights.load_into(model, folder / "student")
    return model.eval()


def export_of(path: Path) -> str:
    """The URI of the export of a run.json."""
    return nodes_of(path, "export")["export"]


def nodes_of(path: Path, *needed: str) -> dict[str, str]:
    """The URIs of the artifacts of a run.json, which must have those that are needed."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(f"{path} {what}; `make demo` or `relic pipeline run` writes a run.json")
    try:
        nodes = json.loads(path.read_text())["nodes"]
        had = ", ".join(nodes) or "none"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run.json; it holds a recipe and the nodes' artifacts") from error
    for name in needed:
        if name not in nodes:
            raise ValueError(f"{path} has no node {name!r}; it has {had}: finish the run first")
    return nodes


def rollout_of(rollout: dict, memory_dtype: str) -> Rollout:
    """The rollout of an export, its memory in another precision."""
    memory = Memory(**weights.dials({**rollout["memory"], "dtype": memory_dtype}))
    return Rollout(**{**weights.dials(rollout), "memory": memory})


def read_world(folder: Path, *, recipe: str, about: dict[str, object]) -> World:
    """examples.json (a list of id, image, caption, place), its PNGs of one size, and world.json (fps, actions)."""
    for name in ("examples.json", "world.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; the evaluate step writes it beside the start images")
    examples = []
    for entry in artifacts.read_json(folder / "examples.json"):
        with Image.open(folder / entry["image"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        examples.append(Example(entry["id"], entry["caption"], entry["place"], pixels))
    sizes = {example.image.shape[:2] for example in examples}
    if len(sizes) != 1:
        raise ValueError(f"the start images in {folder} have {len(sizes)} sizes; exactly one is allowed")
    said = artifacts.read_json(folder / "world.json")
    unknown = sorted(set(said["actions"]) - set(ACTIONS[:-1]))
    if unknown:
        raise ValueError(f"{folder}/world.json has the action {unknown[0]!r}; allowed are {', '.join(ACTIONS[:-1])}")
    (height, width), fps = sizes.pop(), float(said["fps"])
    return World(recipe, height, width, fps, said["actions"], tuple(examples), about)
