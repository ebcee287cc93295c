"""Finished artifacts of a small student, its codec and its evaluation, and the export made of them."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import transformer

from relic import artifacts, steps, tracking
from relic.artifacts import LocalStore
from relic.generate.config import Rollout, Sampler
from relic.memory.config import Memory
from relic.model import config, weights
from relic.model.codec import Codec
from relic.model.transformer import Transformer
from relic.serve.config import Export

ROLLOUT = Rollout(timesteps=(1000.0, 625.0), memory=Memory(window=2, schedule=(1, 2), capacity=6, dtype="bf16"))
SAMPLER = Sampler(steps=2, guidance=2.0)
IMAGE = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
GOOD = {"psnr_gain_over_still_db": 0.25, "action_win_rate": 0.875, "unseen": {"action_win_rate": 0.75}}


def codec() -> Codec:
    """A codec whose pictures are not all but black, as an untrained decoder's are."""
    torch.manual_seed(0)
    found = Codec(config.Codec(latent_channels=4, decoder_widths=(8, 8, 8, 8))).eval()
    torch.nn.init.normal_(list(found.decoder.parameters())[-2])
    return found


def finished(store: Path, step: str, fill: Callable[[Path], None], **facts: dict) -> str:
    """The URI of a finished artifact."""
    local, key = LocalStore(store), artifacts.digest([step, str(facts)])[: artifacts.KEY_LENGTH]
    if local.manifest(step, key) is None:
        with local.working(step, key) as out:
            fill(out)
            local.commit(step, key, {"step": step, "version": 1, "key": key, "parameters": {}, "inputs": {}, **facts})
    return local.uri(step, key)


def write_evaluation(out: Path, figures: dict) -> None:
    examples = out / "examples"
    examples.mkdir()
    Image.fromarray(IMAGE).save(examples / "a.png")
    entries = [{"id": "a", "image": "a.png", "caption": "a hall", "place": "map"}]
    artifacts.write_json(examples / "examples.json", entries)
    artifacts.write_json(examples / "world.json", {"fps": 16, "actions": {"dolly_in": 1.0, "pan_left": 2.0}})
    artifacts.write_json(out / "report.json", {"models": {"base": None, "student": figures}})


def inputs(
    store: Path, student: Transformer | None = None, figures: dict = GOOD, name: str = ""
) -> dict[str, list[str]]:
    """What the export step reads; `name` tells one student of a store from another."""
    own = {"name": name}
    trained = finished(store, "distill", lambda out: weights.save(student or transformer(), out), parameters=own)
    other = finished(store, "student-init", lambda out: weights.save(transformer(seed=5), out), parameters=own)
    made = finished(store, "codec", lambda out: weights.save(codec(), out))
    measured = finished(
        store, "evaluate", lambda out: write_evaluation(out, figures),
        inputs={"student": [other], "distilled": [trained], "codec": [made]},
        parameters={
            "rollout": asdict(ROLLOUT), "sampler": asdict(SAMPLER), "actions": {"degrees_per_unit": 2.0}, **own,
        },
    )  # fmt: skip
    return {"student": [trained], "codec": [made], "evaluation": [measured]}


def untracked(store: Path) -> str:
    """The URI of an export in a new store, of which MLflow hears nothing: what a fixture needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tracking.PARENT, tracking.RUNNER)
        return export(store, inputs(store))


def export(store: Path, given: dict[str, list[str]], name: str = "tiny") -> str:
    """The URI of the export, made by the step itself."""
    return steps.perform(steps.STEPS["export"], Export(name=name), store=str(store), inputs=given)
