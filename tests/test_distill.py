"""Distillation of the student on its own videos."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CFG, KilledAt, conditions, draws, latents, transformer, whole_and_resumed, write_samples

from relic import place
from relic.data import loader
from relic.generate.config import Rollout
from relic.memory.config import Memory
from relic.model import flow, weights
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import distill, optimizer, replay, saved
from relic.train.config import Checkpointing, Distill, Optimizer, Stage

FAST = Optimizer(learning_rate=1e-3, betas=(0.0, 0.999), warmup=0)
QUICK = Distill(
    stages=(Stage(latents=2, steps=2, batch=2), Stage(latents=4, steps=2, batch=2)), critic_steps=1, guidance=1.0,
    rollout=Rollout(chunk=2, memory=Memory(window=2, capacity=8)), optimizer=FAST, critic_optimizer=FAST,
    checkpoint=Checkpointing(every_s=-1),
)  # fmt: skip


class Kept(Run):
    def __init__(self):
        super().__init__()
        self.logged = []

    def log(self, metrics, step):
        if "exit_step" in metrics:  # else how fast it goes
            self.logged.append(metrics)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("teacher/stage-2", "teacher/stage-4"):
        weights.save(transformer(), folder / name)
    weights.save(transformer(seed=1), folder / "student")
    samples = write_samples(folder / "samples", count=16)
    return {"teacher": [folder / "teacher"], "student": [folder / "student"], "samples": samples}


def trained(
    cfg: Distill, inputs, out: Path, student: Transformer | None = None, run: Run | None = None, teacher_of=None
) -> tuple[Transformer, Transformer]:
    """A student and a critic after their training."""
    student, critic = student or transformer(seed=1), transformer()
    distill.train(
        cfg, student, critic, teacher_of=teacher_of or (lambda _: transformer()),
        dataset=loader.load(inputs["samples"], CFG), out=out, run=run or Run.silent(),
    )  # fmt: skip
    return student, critic


def test_resumed_equals_uninterrupted(inputs, tmp_path):
    whole, resumed = whole_and_resumed(distill.main, QUICK, tmp_path, killed_at=3, **inputs)
    before = weights.load_transformer(inputs["student"][0]).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], before[name]) for name in whole)


def test_models_of_embeddings_are_distilled_with_guidance(inputs, tmp_path):
    made = transformer(replace(CFG, text_vocabulary=0))
    for name in ("teacher/stage-2", "student"):
        weights.save(made, tmp_path / name)
    cfg = replace(QUICK, stages=(Stage(latents=2, steps=1, batch=2),), guidance=3.0)
    given = {"teacher": [tmp_path / "teacher"], "student": [tmp_path / "student"], "samples": inputs["samples"]}
    (tmp_path / "distilled").mkdir()
    distill.main(cfg, **given, out=tmp_path / "distilled", run=Run.silent())
    found = weights.load_transformer(tmp_path / "distilled").state_dict()
    assert not all(torch.equal(value, found[name]) for name, value in made.state_dict().items())


def test_a_critic_that_equals_the_teacher_leaves_nothing_to_change():
    difference = distill.score_difference(
        transformer(), transformer(), latents(4, batch=2), conditions(4, batch=2), QUICK, draws(2)
    )
    assert not difference.any()


def test_the_difference_is_the_critics_guess_minus_the_teachers_over_the_distance_to_it(monkeypatch):
    video, timesteps, random = latents(4, batch=2), torch.full((2, 4), 500.0), draws(2)
    cfg = replace(QUICK, least_timestep=500.0, largest_timestep=500.1)
    velocities = {"teacher": latents(4, batch=2, seed=1), "critic": latents(4, batch=2, seed=2)}
    seen = []
    monkeypatch.setattr(distill, "guided", lambda model, guidance, noisy, *_: seen.append(noisy) or velocities[model])
    found = distill.score_difference("teacher", "critic", video, conditions(4, batch=2), cfg, random)  # type: ignore[arg-type]
    real, fake = (flow.clean_of(seen[0], velocities[name], timesteps)[:, 1:] for name in ("teacher", "critic"))
    distance = (video[:, 1:] - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(found[:, 1:], (fake - real) / distance, atol=1e-3, rtol=1e-3)


def test_the_difference_points_from_the_teachers_guess_to_the_critics_and_spares_the_image():
    given = (latents(4, batch=2), conditions(4, batch=2), QUICK)
    there = distill.score_difference(transformer(), transformer(seed=1), *given, draws(2))
    back = distill.score_difference(transformer(seed=1), transformer(), *given, draws(2))
    assert torch.nn.functional.cosine_similarity(there.flatten(), back.flatten(), 0) < -0.95
    assert there[:, 1:].any()
    assert not there[:, 0].any()


def test_its_videos_are_those_of_the_served_rollout(inputs):
    batch = loader.load(inputs["samples"], CFG).batch([0, 1], num_latents=4)
    student = transformer(seed=1)
    video = distill.roll_out(student, QUICK, batch, -1, draws(2))
    walk = distill.start(student, QUICK, batch.latents[:, 0], batch.conditions.text, video.seed)
    served = [walk.step(batch.conditions.actions[:, 1:5]), walk.step(batch.conditions.actions[:, 5:13])]
    assert torch.equal(torch.cat(served, 1), video.latents[:, 1:])


def test_every_exit_step_occurs_and_leaves_a_gradient_and_the_critic_is_trained(inputs, tmp_path):
    run = Kept()
    cfg = replace(QUICK, stages=(Stage(latents=2, steps=12, batch=2),))
    distill.main(cfg, **inputs, out=tmp_path, run=run)
    assert {logged["exit_step"] for logged in run.logged if logged["gradient_norm"] > 0} == {0, 1, 2, 3}
    left, _ = saved.newest(place.opened(cfg.checkpoint.place(tmp_path)), Mesh())
    assert left is not None
    assert not torch.equal(left.whole("critic/weights/head.weight"), transformer().state_dict()["head.weight"])


def test_all_chunks_leave_at_the_exit_step(inputs):
    batch = loader.load(inputs["samples"], CFG).batch([0, 1], num_latents=4)
    for exit_step, time in enumerate(QUICK.rollout.timesteps):
        video = distill.roll_out(transformer(), QUICK, batch, exit_step, draws(2))
        first, second = (made.timesteps for made in video.passes)
        assert (first[:, 1:] == time).all()
        assert (second == time).all()


def test_the_critic_takes_five_steps_before_one_of_the_student(inputs, tmp_path, monkeypatch):
    taken, descend, cfg = [], optimizer.descend, replace(QUICK, stages=(Stage(latents=2, steps=2, batch=2),))
    monkeypatch.setattr(optimizer, "descend", lambda model, *rest: taken.append(model) or descend(model, *rest))
    student, critic = trained(replace(cfg, critic_steps=Distill().critic_steps), inputs, tmp_path)
    assert taken == 2 * [*5 * [critic], student]


def test_the_teacher_is_guided_and_the_critic_is_not(monkeypatch):
    strengths = {}
    monkeypatch.setattr(
        distill, "guided", lambda model, guidance, noisy, *_: strengths.update({model: guidance}) or noisy
    )
    cfg, random = replace(QUICK, guidance=3.0), draws(1)
    distill.score_difference("teacher", "critic", latents(4), conditions(4), cfg, random)  # type: ignore[arg-type]
    assert strengths == {"teacher": 3.0, "critic": 1.0}


def test_the_loss_is_taken_at_shifted_timesteps_from_20_to_980(monkeypatch):
    seen, cfg = [], Distill()
    monkeypatch.setattr(distill, "guided", lambda _model, _guidance, noisy, times, _: seen.append(times) or noisy)
    given = torch.zeros(4000, 3, 1, 1, 1), conditions(1), cfg, draws(4000)
    distill.score_difference("teacher", "critic", *given)  # type: ignore[arg-type]
    times = seen[0]
    assert not times[:, 0].any()
    assert torch.equal(times[:, 1], times[:, 2])
    assert (times[:, 1].min() >= 20, times[:, 1].max()) == (True, 980)
    assert times[:, 1].median() == pytest.approx(1000 * 5 * 0.5 / (1 + 4 * 0.5), rel=0.02)  # half of it, shifted by 5


def test_the_gradient_is_divided_by_the_numbers_of_all_the_batchs_samples(inputs, tmp_path, monkeypatch):
    seen, backward = [], replay.backward
    monkeypatch.setattr(distill, "score_difference", lambda _teacher, _critic, video, *_: torch.ones_like(video))
    monkeypatch.setattr(replay, "backward", lambda *given: seen.append(given[-1]) or backward(*given))
    trained(replace(QUICK, stages=(Stage(latents=4, steps=1, batch=3),)), inputs, tmp_path)
    torch.testing.assert_close(seen[0], torch.full((3, 4, 4, 8, 12), 1 / (3 * 3 * 4 * 8 * 12)))


def test_a_score_difference_that_is_not_finite_stops_before_any_weight_of_the_student_changes(
    inputs, tmp_path, monkeypatch
):
    averages, ema = [], optimizer.Ema
    monkeypatch.setattr(optimizer, "Ema", lambda *given: averages.append(ema(*given)) or averages[-1])
    monkeypatch.setattr(distill, "score_difference", lambda _teacher, _critic, video, *_: video * float("nan"))
    student, before = transformer(seed=1), transformer(seed=1).state_dict()
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        trained(QUICK, inputs, tmp_path, student)
    for left in (student, averages[0].module):
        assert all(torch.equal(value, before[name]) for name, value in left.state_dict().items())


def test_masters_averages_and_moments_are_float32(inputs, tmp_path):
    distill.main(QUICK, **inputs, out=tmp_path, run=Run.silent())
    left, _ = saved.newest(place.opened(QUICK.checkpoint.place(tmp_path)), Mesh())
    assert left is not None
    kinds = {(model, kind) for model in ("student", "critic") for kind in ("weights", "step", "exp_avg", "exp_avg_sq")}
    assert {tuple(name.split("/")[:2]) for name in left.tensors} == kinds | {("student", "ema")}
    assert {dtype for _, dtype in left.tensors.values()} == {torch.float32}


def test_the_teacher_of_a_stage_comes_with_it_and_the_former_has_left(inputs, tmp_path):
    asked: list[tuple[int, weakref.ref]] = []

    def teacher_of(num_latents: int) -> Transformer:
        assert all(former() is None for _, former in asked)
        teacher = transformer()
        asked.append((num_latents, weakref.ref(teacher)))
        return teacher

    for run, lengths in ((KilledAt(3), [2, 4]), (Run.silent(), [2, 4, 4])):  # killed in the middle of the second stage
        with pytest.raises(KeyboardInterrupt) if isinstance(run, KilledAt) else nullcontext():
            trained(QUICK, inputs, tmp_path, run=run, teacher_of=teacher_of)
        gc.collect()  # the traceback's frames hold the last one
        assert [length for length, _ in asked] == lengths


def test_a_stage_is_left_for_the_next_when_its_steps_are_over():
    first, second = QUICK.stages
    assert list(distill.stages_from(QUICK.stages, 0)) == [(first, range(2)), (second, range(2, 4))]
    assert list(distill.stages_from(QUICK.stages, 3)) == [(second, range(3, 4))]
    assert list(distill.stages_from(QUICK.stages, 4)) == []


def test_a_length_without_a_teacher_is_refused(inputs, tmp_path):
    cfg = replace(QUICK, stages=(Stage(latents=6, steps=1, batch=2),))
    with pytest.raises(ValueError, match=r"no model for 6 latents; it has 2, 4"):
        distill.main(cfg, **inputs, out=tmp_path, run=Run.silent())


def test_a_length_between_two_is_taught_by_the_longer_teacher(inputs):
    assert distill.stage_folder(inputs["teacher"][0], 3).name == "stage-4"
