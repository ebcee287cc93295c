"""Generated futures of held-out walks, and what they score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from held_out import walks
from torch import Tensor, nn

from relic.evaluate import predict
from relic.evaluate.config import Evaluate
from relic.evaluate.walks import Walks, as_frames
from relic.generate import sampler
from relic.generate.config import Rollout, Sampler
from relic.memory.config import Memory
from relic.model.conditions import Conditions
from relic.pretrained import words

CFG = Evaluate(known=5, num_latents=6, batch=2, rollout=Rollout(memory=Memory(window=2, capacity=8)))


class Plain(nn.Module):
    """A codec whose latents are the frames themselves."""

    mean = torch.zeros(1)

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    decode = encode


class Oracle:
    """A generator that knows every walk: it gives the true video of whichever walk's actions it is asked for."""

    def __init__(self, known: Walks, blur: float = 0.0):
        self.known, self.blur, self.calls = known, blur, 0

    def __call__(self, image: Tensor, conditions: Conditions) -> Tensor:
        self.calls += 1
        same = (self.known.actions[None].float() == conditions.actions[:, None]).all(-1).all(-1)
        true = as_frames(self.known.frames)[same.float().argmax(1)]
        return true.lerp(image[:, None], self.blur)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    return walks(tmp_path_factory.mktemp("walks"))


def generated(generate: predict.Generate, known: Walks, folder: Path, order: list[int] | None = None) -> np.ndarray:
    given, codec = known.conditions(words.of(tiny_models.CFG, "", "cpu"), order), Plain()
    return predict.videos(generate, codec, known.frames[:, 0], given, CFG, folder)  # type: ignore[arg-type]


def scored(generate: predict.Generate, known: Walks, folder: Path) -> dict[str, float]:
    true, other = (generated(generate, known, folder / str(order), order) for order in (None, known.others()))
    return predict.figures(known, true, other, horizon_s=1.0)


@pytest.mark.parametrize(("off", "db"), [(255, 0.0), (51, 13.9794), (16, 24.0484), (1, 48.1308), (0, 48.1308)])
def test_psnr_of_a_constant_error(off: int, db: float) -> None:
    black = np.zeros((2, 3, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(predict.psnr(black + np.uint8(off), black), np.full((2, 3), db), atol=1e-3)


def test_psnr_is_frame_by_frame() -> None:
    black = np.zeros((1, 2, 8, 8, 3), np.uint8)
    other = black.copy()
    other[0, 1, :4] = 255  # half of the second frame
    np.testing.assert_allclose(predict.psnr(other, black), [[48.1308, 3.0103]], atol=1e-3)


def test_a_perfect_generator_gains_most_and_always_wins(five: Walks, tmp_path: Path) -> None:
    perfect = scored(Oracle(five), five, tmp_path / "perfect")
    blurred = scored(Oracle(five, blur=0.5), five, tmp_path / "blurred")
    assert perfect["psnr_db"] == pytest.approx(48.13, abs=0.01)
    assert perfect["psnr_gain_over_still_db"] > blurred["psnr_gain_over_still_db"] > 0
    assert perfect["action_win_rate"] == blurred["action_win_rate"] == 1


def test_a_frozen_generator_gains_nothing_and_never_wins(five: Walks, tmp_path: Path) -> None:
    frozen = scored(Oracle(five, blur=1.0), five, tmp_path)
    assert (frozen["psnr_gain_over_still_db"], frozen["action_win_rate"]) == (0, 0)
    assert frozen["psnr_db"] == frozen["psnr_still_db"]


def test_a_generator_that_ignores_the_actions_does_not_win(five: Walks, tmp_path: Path) -> None:
    def first_walk(image: Tensor, conditions: Conditions) -> Tensor:
        return as_frames(five.frames)[:1].expand(len(image), -1, -1, -1, -1)

    assert scored(first_walk, five, tmp_path)["action_win_rate"] == 0


def test_the_given_frame_and_what_lies_beyond_the_horizon_do_not_count(five: Walks) -> None:
    spoilt = five.frames.copy()
    spoilt[:, 0], spoilt[:, 9:] = 0, 0
    assert predict.figures(five, spoilt, five.frames, 0.5) == predict.figures(five, five.frames, five.frames, 0.5)
    assert predict.figures(five, spoilt, five.frames, 0.6)["psnr_db"] < 48


def test_walks_are_generated_from_their_own_and_from_others_actions(five: Walks, tmp_path: Path) -> None:
    np.testing.assert_array_equal(generated(Oracle(five), five, tmp_path / "true"), five.frames)
    other = generated(Oracle(five), five, tmp_path / "other", five.others())
    np.testing.assert_array_equal(other, five.frames[five.others()])


def test_a_finished_batch_is_not_generated_again(five: Walks, tmp_path: Path) -> None:
    oracle = Oracle(five)
    first = generated(oracle, five, tmp_path)
    assert oracle.calls == 3
    (tmp_path / "00002.npy").unlink()  # a kill came before the second batch was written
    again = generated(oracle, five, tmp_path)
    assert oracle.calls == 4
    np.testing.assert_array_equal(first, again)


def test_a_batch_that_a_kill_cut_short_is_generated_again(five: Walks, tmp_path: Path) -> None:
    (tmp_path / "00000.new.npy").write_bytes(b"\x93NUMPY half")
    np.testing.assert_array_equal(generated(Oracle(five), five, tmp_path), five.frames)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_few_steps_gives_every_latent_and_begins_with_the_image(chunk: int) -> None:
    cfg = replace(CFG, rollout=replace(CFG.rollout, chunk=chunk), script_latents=6)
    image, conditions = tiny_models.latents(1, batch=2)[:, 0], tiny_models.conditions(6, batch=2)
    made = predict.few_steps(tiny_models.transformer(), cfg)(image, conditions)
    assert made.shape == (2, 6, 4, 8, 12)
    assert torch.equal(made[:, 0], image)


def test_many_steps_is_the_teachers_sampler() -> None:
    cfg = replace(CFG, sampler=Sampler(steps=2), seed=3)
    model, image, conditions = tiny_models.transformer(), tiny_models.latents(1)[:, 0], tiny_models.conditions(6)
    made = predict.many_steps(model, cfg)(image, conditions)
    expected = sampler.sample(
        model, cfg.sampler, image_latent=image, conditions=conditions, num_latents=6, seed=3
    )  # fmt: skip
    assert torch.equal(made, expected)


@pytest.mark.parametrize("dials", [{"known": 1}, {"unseen": 1}, {"unseen": -1}])
def test_walks_that_cannot_swap_actions_are_refused(dials: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="allowed are at least 2 of each, or 0 unseen"):
        Evaluate(**dials)  # type: ignore[arg-type]


def test_latents_that_are_no_multiple_of_the_chunk_are_refused() -> None:
    with pytest.raises(ValueError, match="num_latents is 7; it must be a multiple of the chunk, 2"):
        Evaluate(num_latents=7)
