"""The engine: a student's walk through rollout and codec."""

import numpy as np
import pytest
import torch
from exports import IMAGE, codec
from tiny_models import CFG, transformer

from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS, integrate
from relic.geometry.config import Actions
from relic.memory.config import Memory
from relic.pretrained import words
from relic.serve import engine

ROLLOUT = Rollout(timesteps=(1000.0, 625.0), memory=Memory(window=2, capacity=6, dtype="fp8"))
UNIT = Actions(degrees_per_unit=2.0)
WORLD = engine.World("test", 16, 32, 16.0, {"dolly_in": 1.0}, (engine.Example("a", "a hall", "map", IMAGE),), {})


@pytest.fixture(scope="module")
def student() -> engine.Student:
    said, device = words.of(CFG, "", "cpu"), torch.device("cpu")
    return engine.Student(transformer(), codec(), ROLLOUT, words=said, unit=UNIT, world=WORLD, device=device)


def forward(count: int) -> np.ndarray:
    actions = np.zeros((count, 13))
    actions[:, ACTIONS.index("dolly_in")] = 1
    return actions


def test_a_walk_gives_a_frame_an_action_and_the_start_before_them(student):
    walk = student.open(IMAGE, "a hall", 0)
    count = walk.num_actions
    frames, poses = walk.step(forward(count))
    assert frames.shape == (count + 1, 16, 32, 3)
    assert frames.dtype == np.uint8
    frames, poses = walk.step(forward(walk.num_actions))
    assert len(frames) == len(poses) == 8


def test_poses_are_the_integral_of_the_actions(student):
    walk = student.open(IMAGE, "a hall", 0)
    actions = np.zeros((walk.num_actions, 13))
    actions[:, ACTIONS.index("pan_left")] = 3
    _, poses = walk.step(actions)
    expected = integrate(torch.from_numpy(actions), UNIT).numpy()
    assert poses[1:] == pytest.approx(expected, abs=1e-6)


def test_a_walk_repeats_with_its_seed_and_differs_with_another(student):
    def last(seed: int) -> np.ndarray:
        walk = student.open(IMAGE, "a hall", seed)
        walk.step(forward(walk.num_actions))
        return walk.step(forward(walk.num_actions))[0]

    assert (last(1) == last(1)).all()
    assert (last(1) != last(2)).any()


def test_walks_do_not_disturb_each_other(student):
    alone = student.open(IMAGE, "a hall", 0)
    wanted = [alone.step(forward(alone.num_actions))[0] for _ in range(2)]
    one, other = student.open(IMAGE, "a hall", 0), student.open(255 - IMAGE, "a yard", 5)
    for frames in wanted:
        assert (one.step(forward(one.num_actions))[0] == frames).all()
        other.step(forward(other.num_actions))


def test_walks_share_one_copy_of_what_a_chunk_sees(student):
    one, other = (student.open(IMAGE, "a hall", seed) for seed in (0, 1))
    assert one.rollout.context is other.rollout.context
    assert one.rollout.memory.window is not other.rollout.memory.window


def test_a_walk_goes_on_beyond_its_memory(student):
    walk = student.open(IMAGE, "a hall", 0)
    for _ in range(8):
        frames, _ = walk.step(forward(walk.num_actions))
    assert walk.rollout.num_latents == 16
    assert len(frames) == 8


def test_a_device_that_is_not_here_is_said():
    with pytest.raises(ValueError, match="device is 'tpu'"):
        engine.choose_device("tpu")
    with pytest.raises(ValueError, match="device is 'cuda:99'; here are cpu and"):
        engine.choose_device("cuda:99")
