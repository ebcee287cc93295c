"""Teaching the bidirectional model, on samples drawn without a world."""

from pathlib import Path

import pytest
import torch
from tiny_models import CFG, whole_and_resumed, write_samples

from relic.model import weights
from relic.tracking import Run
from relic.train import teacher
from relic.train.config import Checkpointing, Optimizer, Stage, Teacher

STAGES = (Stage(latents=2, steps=3, batch=2), Stage(latents=4, steps=3, batch=2))
QUICK = Teacher(model=CFG, stages=STAGES, checkpoint=Checkpointing(every_s=-1), optimizer=Optimizer(warmup=1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_resumed_equals_uninterrupted(dataset, tmp_path):
    whole, resumed = whole_and_resumed(teacher.main, QUICK, tmp_path, killed_at=4, samples=dataset)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_the_model_of_every_stage_is_kept_with_its_length(dataset, tmp_path):
    teacher.main(QUICK, samples=dataset, out=tmp_path, run=Run.silent())
    lengths = [weights.load_transformer(tmp_path / f"stage-{n}").cfg.frames for n in (2, 4)]
    assert lengths == [2, 4]
    assert weights.load_transformer(tmp_path).cfg.frames == 4


def test_it_learns(dataset, tmp_path):
    seen = []

    class Kept(Run):
        def log(self, metrics, step):
            seen.extend([metrics["loss"]] if "loss" in metrics else [])  # else how fast it goes

    cfg = Teacher(model=CFG, stages=(Stage(latents=2, steps=40, batch=4),), optimizer=Optimizer(learning_rate=3e-3))
    teacher.main(cfg, samples=dataset, out=tmp_path, run=Kept())
    assert sum(seen[-10:]) < 0.9 * sum(seen[:10])


def test_a_step_belongs_to_its_stage():
    assert [teacher.stage_at(STAGES, step)[0].latents for step in range(6)] == [2, 2, 2, 4, 4, 4]
    assert [teacher.stage_at(STAGES, step)[1] for step in range(6)] == [False, False, True] * 2
