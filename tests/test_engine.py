"""The engine: a student's walk through rollout and codec, and what `load` says about a run that it cannot serve."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import transformer

from relic import artifacts
from relic.generate.config import Rollout
from relic.geometry.actions import ACTIONS, integrate
from relic.geometry.config import Actions
from relic.memory.config import Memory
from relic.model import config, weights
from relic.model.codec import Codec
from relic.serve import engine
from relic.serve.config import Serve

CODEC = config.Codec(latent_channels=4, decoder_widths=(8, 8, 8, 8))
ROLLOUT = Rollout(timesteps=(1000.0, 625.0), memory=Memory(window=2, capacity=6, dtype="fp8"))
UNIT = Actions(degrees_per_unit=2.0)
IMAGE = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
WORLD = engine.World("test", 16, 32, 16.0, {"dolly_in": 1.0}, (engine.Example("a", "a hall", "map", IMAGE),), {})


@pytest.fixture(scope="module")
def student() -> engine.Student:
    torch.manual_seed(0)
    codec = Codec(CODEC).eval()
    last = list(codec.decoder.parameters())[-2]
    torch.nn.init.normal_(last)  # an untrained decoder is all but black
    return engine.Student(transformer(), codec, ROLLOUT, unit=UNIT, world=WORLD, device=torch.device("cpu"))


def forward(count: int) -> np.ndarray:
    actions = np.zeros((count, 13))
    actions[:, ACTIONS.index("dolly_in")] = 1
    return actions


def finished(store: Path, step: str, parameters: dict) -> Path:
    """The folder of an artifact with a manifest."""
    folder = store / step / artifacts.digest(step)[: artifacts.KEY_LENGTH]
    folder.mkdir(parents=True)
    artifacts.write_json(folder / "manifest.json", {"parameters": parameters, "files": {}})
    return folder


@pytest.fixture
def run(tmp_path: Path, student: engine.Student) -> Path:
    """run.json of a pipeline whose student, codec and evaluation are there."""
    memory = {"window": 2, "schedule": [1, 2], "capacity": 6, "dtype": "bf16"}
    rollout = {"chunk": 2, "timesteps": [1000.0, 625.0], "memory": memory}
    nodes = {
        "student-init": finished(tmp_path, "student-init", {"rollout": rollout}),
        "codec": finished(tmp_path, "codec", {}),
        "evaluate": finished(tmp_path, "evaluate", {"actions": {"degrees_per_unit": 2.0}}),
    }
    weights.save(student.model, nodes["student-init"])
    weights.save(student.codec, nodes["codec"])
    examples = nodes["evaluate"] / "examples"
    examples.mkdir()
    Image.fromarray(IMAGE).save(examples / "a.png")
    entries = [{"id": "a", "image": "a.png", "caption": "a hall", "place": "map"}]
    artifacts.write_json(examples / "examples.json", entries)
    artifacts.write_json(examples / "world.json", {"fps": 16, "actions": {"dolly_in": 1.0}})
    artifacts.write_json(tmp_path / "run.json", {"recipe": "tiny", "nodes": {k: str(v) for k, v in nodes.items()}})
    return tmp_path / "run.json"


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


def test_a_walk_goes_on_beyond_its_memory(student):
    walk = student.open(IMAGE, "a hall", 0)
    for _ in range(8):
        frames, _ = walk.step(forward(walk.num_actions))
    assert walk.rollout.num_latents == 16
    assert len(frames) == 8


def test_load_serves_a_run_with_the_rollout_it_was_trained_with(run):
    loaded = engine.load(Serve(run=str(run), device="cpu"))
    assert loaded.cfg.timesteps == (1000.0, 625.0)
    assert loaded.cfg.memory == Memory(window=2, schedule=(1, 2), capacity=6, dtype="fp8")
    assert loaded.unit.degrees_per_unit == 2.0
    assert (loaded.world.height, loaded.world.width, loaded.world.fps) == (16, 32, 16.0)
    walk = loaded.open(loaded.world.examples[0].image, "", 0)
    walk.step(forward(walk.num_actions))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a run.json"),
        ("[]", "is not a run.json"),
        (json.dumps({"recipe": "tiny", "nodes": {"codec": "x"}}), "has no node 'student-init'; it has codec"),
    ],
)
def test_a_run_that_is_not_one_is_said(tmp_path, text, sentence):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        engine.load(Serve(run=str(tmp_path / "run.json")))


def test_a_missing_run_says_which_command_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"run.json is not there; `make demo`"):
        engine.load(Serve(run=str(tmp_path / "run.json")))


def test_a_device_that_is_not_here_is_said():
    with pytest.raises(ValueError, match="device is 'tpu'"):
        engine.choose_device("tpu")
    with pytest.raises(ValueError, match="device is 'cuda:99'; here are cpu and"):
        engine.choose_device("cuda:99")
