"""Cameras, scripts and returns, with an estimator and generators whose answers are known."""

import numpy as np
import pytest
import tiny_models
import torch
from held_out import walks
from torch import Tensor

from relic.evaluate import predict, probes
from relic.evaluate.config import Evaluate, Revisit
from relic.evaluate.walks import Walks, as_frames
from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS
from relic.memory.config import Memory
from relic.model.codec import Codec
from relic.model.config import Codec as CodecConfig
from relic.pretrained import words

CFG = Evaluate(known=4, num_latents=6, script_latents=4, rollout=Rollout(memory=Memory(window=2, capacity=6)))
NET = torch.nn.Linear(1, 1)  # stands for the estimator's weights


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    return walks(tmp_path_factory.mktemp("walks"), 4)


@pytest.fixture
def _perfect(four: Walks, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimator that recognises the walks, and sees no motion in any other video."""

    def track(net: torch.nn.Module, frames: Tensor) -> Tensor:
        found = torch.eye(4, dtype=torch.float64).repeat(*frames.shape[:2], 1, 1)
        for i, video in enumerate(frames):
            for true, poses in zip(as_frames(four.frames), four.poses, strict=True):
                if torch.equal(video, true):
                    found[i] = poses
        return found

    monkeypatch.setattr(probes.pose_net, "track", track)


@pytest.mark.usefixtures("_perfect")
def test_the_true_video_has_no_error_and_a_frozen_one_that_of_doing_nothing(four: Walks) -> None:
    frozen = np.repeat(four.frames[:, :1], four.frames.shape[1], 1)
    found, scale = probes.cameras(NET, four, {"frozen": frozen}, {"model": four.frames}, CFG)  # type: ignore[arg-type]
    assert (list(found), scale) == (["true video", "frozen", "model"], pytest.approx(1))
    assert found["model"]["common"]["rpe_r_1"] == found["true video"]["rpe_r_1"]
    assert found["true video"]["rpe_r_1"]["mean"] == pytest.approx(0, abs=1e-5)
    assert found["frozen"]["rpe_r_1"]["mean"] == pytest.approx(found["frozen"]["rpe_r_1"]["do_nothing"])
    assert found["true video"]["following"]["balanced_accuracy"] == 1


def test_scripts_are_every_action_alone_and_walking_while_turning() -> None:
    found = probes.scripts({"dolly_in": 1.5, "pan_left": 2.0}, 13)
    assert list(found) == ["dolly_in", "pan_left", "dolly_in + pan_left"]
    both = found["dolly_in + pan_left"]
    assert both[1:, [ACTIONS.index("dolly_in"), ACTIONS.index("pan_left")]].unique(dim=0).tolist() == [[1.5, 2.0]]
    assert both.sum() == 12 * 3.5 + 1  # and the first row stands still


@pytest.mark.usefixtures("_perfect")
def test_every_script_is_made_from_the_same_starts(four: Walks) -> None:
    asked = []

    def make(name: str, given: Walks, generate: predict.Generate) -> np.ndarray:
        asked.append((name, given.ids, given.poses.shape[1]))
        return np.zeros((len(given), 13, 64, 96, 3), np.uint8)

    model = tiny_models.transformer()
    found = probes.on_scripts(model, NET, four, {"dolly_in": 1.0}, 1.0, make, CFG)  # type: ignore[arg-type]
    assert asked == [("script dolly_in", four.ids, 13)]
    assert found["dolly_in"]["rpe_t_1"]["n_ok"] == 0  # a still camera is no camera that walks


def test_a_memory_without_old_latents_shows_the_image_and_the_window() -> None:
    usual = Memory(window=2, capacity=8)
    made = probes.memories(Evaluate(rollout=Rollout(chunk=2, memory=usual)))
    walk = predict.started(
        tiny_models.transformer(), Evaluate(rollout=Rollout(chunk=2, memory=made["window only"])),
        tiny_models.latents(1)[:, 0], tiny_models.conditions(8),
    )  # fmt: skip
    for _ in range(4):
        walk.step(torch.zeros(1, walk.num_actions, 13))
    walk.memory.reserve(2)
    assert [slot.latent for slot in walk.memory.slots] == [0, 6, 7]
    assert made["full"].stride(5) == 1
    assert made["relic"] == usual


@pytest.mark.parametrize("permute", [probes.shuffled, probes.exchanged])
def test_pooled_latents_only_are_permuted(permute: probes.Permute) -> None:
    model, given = tiny_models.transformer(), tiny_models.conditions(8, batch=2)
    image = tiny_models.latents(1, batch=2)[:, 0]
    cfg = Evaluate(num_latents=8, script_latents=4, rollout=Rollout(memory=Memory(window=2, capacity=8)))
    plain, mixed = predict.few_steps(model, cfg)(image, given), probes.permuted(model, cfg, permute)(image, given)
    assert torch.equal(plain[:, :4], mixed[:, :4])  # until then the image and the window are all there is
    assert not torch.equal(plain[:, 4:], mixed[:, 4:])


def test_returns_measure_every_memory_and_a_frozen_video_earns_nothing(four: Walks) -> None:
    cfg = Evaluate(num_latents=6, script_latents=4, revisit=Revisit(min_away=4, left=2.0))

    def make(name: str, given: Walks, generate: predict.Generate) -> np.ndarray:
        return given.frames

    found, videos = probes.on_returns(tiny_models.transformer(), four, make, cfg)
    assert (
        list(found) == list(videos) == ["true", "still", "relic", "window only", "full", "shuffled", "another walk's"]
    )
    assert found["still"]["gated_psnr_db"] == 0
    assert found["relic"] == found["true"]
    assert found["full"]["behind_relic"]["psnr_db"] == {"mean": 0, "error": 0, "better_in": 0}
    assert found["true"]["gated_psnr_db"] > 20


def test_walks_that_do_not_come_back_have_no_figure(four: Walks) -> None:
    found = probes.returned(four, four.frames, CFG)
    assert probes.means(found)["walks"] == 0
    assert probes.means(found)["gated_psnr_db"] is None
    assert probes.behind(found, found)["psnr_db"] is None


def test_a_shuffled_token_keeps_its_key_and_an_exchanged_one_comes_whole() -> None:
    pooled = torch.arange(24.0).reshape(2, 1, 3, 4, 1)  # keys, values of 3 walks of 4 tokens
    mixed = probes.shuffled(pooled, torch.Generator().manual_seed(1))
    assert torch.equal(mixed[0], pooled[0])
    assert torch.equal(mixed[1].sort(2).values, pooled[1])
    assert not torch.equal(mixed[1], pooled[1])
    assert torch.equal(probes.exchanged(pooled, torch.Generator())[:, 0, 1], pooled[:, 0, 0])


def test_a_memory_is_behind_by_the_mean_over_walks_with_its_standard_error() -> None:
    worse = {name: np.array([20.0, 22.0, 21.0]) for name in ("psnr_db", "psnr_to_truth_db")}
    better = {name: np.array([21.0, 24.0, 20.5]) for name in worse}
    expected = {"mean": pytest.approx(2.5 / 3), "error": pytest.approx((19 / 36) ** 0.5), "better_in": 2}
    assert probes.behind(worse, better)["psnr_db"] == expected


def test_a_latency_is_measured_for_every_chunk_but_the_first(four: Walks) -> None:
    codec = Codec(CodecConfig(latent_channels=4, decoder_widths=(4, 4, 4, 4)))
    found = probes.chunk_latency_ms(tiny_models.transformer(), codec, four, words.of(tiny_models.CFG, "", "cpu"), CFG)
    assert len(found) == 2
    assert min(found) > 0
