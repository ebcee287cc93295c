"""The engine: a student's walk through rollout and codec."""

import json
from collections import deque

import numpy as np
import pytest
import torch
from exports import IMAGE, codec
from safetensors.torch import load_file, save_file
from tiny_models import CFG, transformer

from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS, integrate
from relic.geometry.config import Actions
from relic.memory.config import Memory
from relic.pretrained import words
from relic.serve import engine
from relic.serve.world import Example, State, Walk, World

ROLLOUT = Rollout(timesteps=(1000.0, 625.0), memory=Memory(window=2, capacity=6, dtype="fp8"))
UNIT = Actions(degrees_per_unit=2.0)
WORLD = World("test", 16, 32, 16.0, {"dolly_in": 1.0}, (Example("a", "a hall", "map", IMAGE),), {})


@pytest.fixture(scope="module")
def student() -> engine.Student:
    said, device = words.of(CFG, "", "cpu"), torch.device("cpu")
    return engine.Student(transformer(), codec(), ROLLOUT, words=said, unit=UNIT, world=WORLD, device=device)


def forward(count: int) -> np.ndarray:
    actions = np.zeros((count, 13))
    actions[:, ACTIONS.index("dolly_in")] = 1
    return actions


def step(walk: Walk, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All frames and poses of a chunk."""
    frames, poses = zip(*walk.step(actions), strict=True)
    return np.concatenate(frames), np.concatenate(poses)


@pytest.mark.parametrize(("count", "said"), [(1, "CPU, 1 thread"), (2, "CPU, 2 threads")])
def test_a_cpu_is_named_by_its_threads(monkeypatch, count, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert engine.device_name(torch.device("cpu")) == said


def test_a_walk_gives_a_frame_an_action_and_the_start_before_them(student):
    walk = student.open(IMAGE, "a hall", 0)
    count = walk.num_actions
    frames, poses = step(walk, forward(count))
    assert frames.shape == (count + 1, 16, 32, 3)
    assert frames.dtype == np.uint8
    frames, poses = step(walk, forward(walk.num_actions))
    assert len(frames) == len(poses) == 8


def test_poses_are_the_integral_of_the_actions(student):
    walk = student.open(IMAGE, "a hall", 0)
    actions = np.zeros((walk.num_actions, 13))
    actions[:, ACTIONS.index("pan_left")] = 3
    _, poses = step(walk, actions)
    expected = integrate(torch.from_numpy(actions), UNIT).numpy()
    assert poses[1:] == pytest.approx(expected, abs=1e-6)


def test_a_walk_repeats_with_its_seed_and_differs_with_another(student):
    def last(seed: int) -> np.ndarray:
        walk = student.open(IMAGE, "a hall", seed)
        step(walk, forward(walk.num_actions))
        return step(walk, forward(walk.num_actions))[0]

    assert (last(1) == last(1)).all()
    assert (last(1) != last(2)).any()


def test_walks_do_not_disturb_each_other(student):
    alone = student.open(IMAGE, "a hall", 0)
    wanted = [step(alone, forward(alone.num_actions))[0] for _ in range(2)]
    one, other = student.open(IMAGE, "a hall", 0), student.open(255 - IMAGE, "a yard", 5)
    for frames in wanted:
        assert (step(one, forward(one.num_actions))[0] == frames).all()
        step(other, forward(other.num_actions))


def test_walks_share_one_copy_of_what_a_chunk_sees(student):
    one, other = (student.open(IMAGE, "a hall", seed) for seed in (0, 1))
    assert one.rollout.context is other.rollout.context
    assert one.rollout.memory.window is not other.rollout.memory.window


def test_a_walk_goes_on_beyond_its_memory(student):
    walk = student.open(IMAGE, "a hall", 0)
    for _ in range(8):
        frames, _ = step(walk, forward(walk.num_actions))
    assert walk.rollout.num_latents == 16
    assert len(frames) == 8


@torch.inference_mode()
def test_a_walk_whose_memory_is_not_finite_shows_nothing_and_is_made_to_the_end_of_its_chunk():
    walk, other = walked(chunks=2), walked(chunks=2)
    window, before = walk.rollout.memory.window, walk.rollout.num_latents
    window.write(..., torch.full(window.data.shape, torch.nan))
    made = walk.step(forward(walk.num_actions))
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        next(made)
    assert walk.rollout.num_latents == before + 2
    assert len(step(other, forward(other.num_actions))[0]) == 8


def test_a_device_that_is_not_here_is_said():
    with pytest.raises(ValueError, match="device is 'tpu'"):
        engine.choose_device("tpu")
    with pytest.raises(ValueError, match="device is 'cuda:99'; here are cpu and"):
        engine.choose_device("cuda:99")


MEMORIES: dict[str, dict] = {
    "relic": {},
    "landmarks": {"policy": "relic_landmarks", "landmarks": 2, "retrieved": 1},
    "latents": {"pooled": "latents"},
    "bf16": {"dtype": "bf16"},
}


def walked(chunk: int = 2, memory: dict | None = None, chunks: int = 7, context: str = "clean") -> engine.StudentWalk:
    cfg = Rollout(
        chunk=chunk,
        timesteps=(1000.0, 625.0),
        context=context,
        memory=Memory(**{"window": 2, "capacity": 6, "dtype": "fp8"} | (memory or {})),
    )
    said, device = words.of(CFG, "", "cpu"), torch.device("cpu")
    student = engine.Student(transformer(), codec(), cfg, words=said, unit=UNIT, world=WORLD, device=device)
    walk = student.open(IMAGE, "a hall", 3)
    for _ in range(chunks):
        step(walk, forward(walk.num_actions))
    return walk


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_walk_goes_on_from_its_state_as_if_it_had_not_stopped(chunk, memory, tmp_path):
    walk = walked(chunk, MEMORIES[memory])
    state = walk.state()
    save_file(state.tensors, tmp_path / "state.safetensors")
    facts = json.loads(json.dumps(state.facts))
    elsewhere = walked(chunk, MEMORIES[memory], chunks=2).student
    again = elsewhere.restore(State(load_file(tmp_path / "state.safetensors"), facts))
    for _ in range(5):
        (frames, poses), (other, places) = (step(w, forward(w.num_actions)) for w in (walk, again))
        assert (frames == other).all()
        assert (poses == places).all()


@pytest.mark.parametrize(
    ("chunk", "context", "memory"),
    [
        (1, "clean", {"policy": "full", "dtype": "bf16"}),
        (1, "noisy", {"policy": "relic_landmarks", "landmarks": 2, "retrieved": 1}),
        (2, "noisy", {"pooled": "latents", "dtype": "fp32"}),
        (4, "clean", {"policy": "window", "dtype": "fp32", "capacity": 8}),
        (4, "noisy", {"capacity": 8}),
    ],
)
def test_a_walk_is_the_same_alone_in_turns_gone_back_to_and_restored(chunk: int, context: str, memory: dict):
    alone, walk = (walked(chunk, memory, 4, context) for _ in range(2))
    moment, state, other = walk.branch(), walk.state(), walk.student.open(255 - IMAGE, "a yard", 5)
    kept = State({name: x.clone() for name, x in state.tensors.items()}, state.facts)
    wanted = [step(alone, forward(alone.num_actions))[0] for _ in range(3)]
    for again in (walk, moment.branch(), moment.branch(), alone.student.restore(kept)):
        for frames in wanted:
            assert (step(again, forward(again.num_actions))[0] == frames).all()
            step(other, -forward(other.num_actions)[:, ::-1])


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_restored_walk_holds_nothing_of_what_it_was_restored_from(memory):
    def places(walk: engine.StudentWalk) -> set[int]:  # on a CPU a state is views
        return {x.untyped_storage().data_ptr() for x in walk.state().tensors.values()}

    walk = walked(memory=MEMORIES[memory])
    again = walk.student.restore(walk.state())
    assert not places(walk) & places(again)


def test_a_walk_that_has_just_begun_has_a_state(student):
    walk = student.open(IMAGE, "a hall", 3)
    again = student.restore(walk.state())
    assert (step(walk, forward(walk.num_actions))[0] == step(again, forward(again.num_actions))[0]).all()


def test_a_branch_leaves_the_walk_as_it_was():
    walk, alone = walked(), walked()
    branch = walk.branch()
    for _ in range(4):
        step(branch, -forward(branch.num_actions)[:, ::-1])
    for _ in range(3):
        assert (step(walk, forward(walk.num_actions))[0] == step(alone, forward(alone.num_actions))[0]).all()


def test_a_branch_is_made_of_the_tensors_that_functions_were_compiled_for():
    walk = walked()
    for one in (walk, walk.branch(), walk.student.restore(walk.state())):
        assert all(x.is_inference() for store in one.rollout.memory.stores for x in store.tensors().values())


def test_what_branches_share_has_one_address():
    walk = walked()
    for _ in range(6):
        step(walk, forward(walk.num_actions))
    own, branch = walk.storage(), walk.branch().storage()
    window, shared = walk.rollout.memory.window, own.keys() & branch.keys()
    assert shared
    assert sum(own.values()) >= walk.rollout.memory.num_bytes
    assert sum((own | branch).values()) - sum(own.values()) >= window.num_bytes
    assert not {x.untyped_storage().data_ptr() for x in window.tensors().values()} & shared


@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_walk_and_its_moments_take_what_is_said_at_most(memory: str, points: int):
    walk, moments, held = walked(memory=MEMORIES[memory], chunks=2), deque[engine.StudentWalk](), []
    for chunk in range(30):
        if points and chunk % 3 == 0:  # of 8 frames
            moments.append(walk.branch())
        held.append(sum(dict(x for one in (walk, *moments) for x in one.storage().items()).values()))
        if len(moments) > points:
            moments.popleft()
        step(walk, forward(walk.num_actions))
    assert 0.8 * (most := walk.most_bytes(points=points, every=17)) < max(held) <= most


def test_a_state_of_another_engine_is_refused(student):
    with pytest.raises(ValueError, match="'dtype': 'bf16'"):
        student.restore(walked(memory={"dtype": "bf16"}).state())
