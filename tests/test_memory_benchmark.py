"""The benchmark of memory, run small."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import returning
import revisited
import torch
from synthetic import track
from tiny_models import conditions, latents, transformer

from relic.generate.config import Rollout
from relic.generate.rollout import Rollout as Walk
from relic.generate.rollout import play
from relic.memory.config import Memory
from relic.model import weights
from relic.train.config import Checkpointing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, BENCHMARKS / "memory.py", "--recipe", "memory_quick", "--out", folder, *options]
    subprocess.run([*map(str, command), "--json", str(folder / "found.json")], check=True, cwd=BENCHMARKS.parent)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return run(folder)


def test_every_policy_has_a_figure_with_an_interval(found):
    policies = {row["policy"] for row in found["policies"]}
    assert policies >= {"codec", "full", "window", "relic", "relic_plain", "relic_landmarks"}
    assert {row["metric"] for row in found["policies"]} == {"psnr_db", "ssim", "place"}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in found["policies"])


def test_differences_are_those_of_the_means(found):
    means = {
        (row["world"], *row["away_frames"], row["metric"], row["policy"]): row["mean"] for row in found["policies"]
    }
    for row in found["differences"]:
        at = (row["world"], *row["away_frames"], row["metric"])
        assert row["mean"] == pytest.approx(means[*at, row["policy"]] - means[*at, row["less"]], abs=2e-4)


def test_what_made_the_figures_is_said(found):
    assert {"recipe", "commit", "command", "hardware", "torch", "steps", "measured_after", "tokens"} <= found.keys()


@pytest.mark.parametrize("recipe", returning.RECIPES.values())
def test_landmarks_cost_no_more_than_pooling_further_saves(recipe):
    cfg = recipe()
    for way in cfg.measured:
        mean = {
            name: returning.tokens_shown(cfg, one, way).mean() for name, one in returning.memories(cfg, way).items()
        }
        assert mean["window"] < mean["relic_landmarks"] <= mean["relic"] < mean["full"]


@pytest.mark.parametrize("recipe", returning.RECIPES.values())
def test_the_longest_walk_is_within_the_clips_and_the_capacity(recipe):
    cfg = recipe()
    assert set(cfg.measured) <= set(cfg.ways)
    assert 4 * max(cfg.ways) - 3 <= cfg.clip_frames
    assert returning.num_latents(max(cfg.ways)) <= cfg.rollout.memory.capacity


def test_the_model_at_a_mark_is_measured_without_training_again(found, folder):
    trained = (folder / "step-6" / "model.safetensors").stat().st_mtime_ns
    assert run(folder, "--mark", "3")["measured_after"] == 3
    assert (folder / "step-6" / "model.safetensors").stat().st_mtime_ns == trained


def test_a_walk_ends_on_the_way_it_came():
    order = returning.there_and_back(6)
    assert len(order) == 4 * returning.num_latents(6) - 3
    assert list(order[18:24]) == [18, 19, 20, 19, 18, 17]
    assert order[-1] == 4


def test_only_views_that_nothing_shows_any_more_are_to_be_remembered():
    cfg = returning.memory_quick()
    still = np.tile(np.eye(4), (1, 29, 1, 1))
    assert not revisited.time_away(cfg, 8, still).any()
    turning = track(np.full(28, 5.1), step=0.0)[None]  # five frames are near, six are not
    away = revisited.time_away(cfg, 8, turning)[0]
    assert not away[:4].any()  # the window shows where it turned round
    assert not away[-1]  # the image does, four frames from it
    assert away[13] == 42 - 19  # frame 42 is where 14 was; the chunk begins at 37, which is where 19 was


def walked(which: int | None, stride: int) -> torch.Tensor:
    memory = Memory(policy="full", window=2, capacity=16, dtype="fp32")
    control = conditions(8)
    walk = Walk(
        transformer(), Rollout(chunk=2, memory=memory), image_latent=latents(8)[:, 0], text=control.text, seed=0
    )
    if which is not None:
        revisited.pooled_half(walk, which, stride)
    return play(walk, control.actions, num_latents=8)[0]


@pytest.mark.parametrize("which", [0, 1])
def test_keys_or_values_are_pooled_behind_the_window_and_by_1_not_at_all(which):
    whole = walked(None, 1)
    torch.testing.assert_close(walked(which, 1), whole)
    pooled = walked(which, 2)
    torch.testing.assert_close(pooled[:, :4], whole[:, :4])  # nothing but the image has left the window
    assert (pooled[:, 4:] - whole[:, 4:]).abs().max() > 1e-4


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    cfg = replace(returning.memory_quick(), checkpoint=Checkpointing(every_s=-1))
    frames = np.random.default_rng(0).integers(0, 256, (2, 29, 64, 96, 3), np.uint8)
    clips = {"rooms": (frames, np.stack([track(np.full(28, turn)) for turn in (2.0, -3.0)]))}
    for folder in ("whole", "resumed"):
        (tmp_path / folder).mkdir()
    whole = returning.train(cfg, clips, tmp_path / "whole")
    monkeypatch.setattr(weights, "save", Mock(side_effect=KeyboardInterrupt))  # at the mark
    with pytest.raises(KeyboardInterrupt):
        returning.train(cfg, clips, tmp_path / "resumed")
    monkeypatch.undo()
    resumed = returning.train(cfg, clips, tmp_path / "resumed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
