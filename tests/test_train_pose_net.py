"""Training the pose estimator, on walks drawn without a world."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import synthetic
import torch
from tiny_models import first_moment, whole_and_resumed

from relic.data import clip
from relic.geometry.config import Actions
from relic.model import config, precision, weights
from relic.model.pose_net import integrate, motions
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.tracking import Run
from relic.train import pose_net
from relic.train.config import Checkpointing, Optimizer, PoseNetTraining

SMALL = config.PoseNet(height=32, width=48, widths=(8, 16, 16), hidden=16)
SELDOM = Checkpointing(every_s=60)
OFTEN = Checkpointing(every_s=-1)
QUICK = PoseNetTraining(model=SMALL, steps=4, batch=2, piece_frames=6, checkpoint=OFTEN)
TWO_DEGREES = np.radians(2.0)


def turns(index: int) -> np.ndarray:
    """Degrees a frame [60], another speed every 15 frames."""
    return np.repeat(np.random.default_rng(index).uniform(-4, 4, 4), 15)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    entries = []
    for index, region in enumerate(["train"] * 6 + ["known"] * 2):
        r = synthetic.recording(poses=synthetic.track(turns(index)), region=region)
        made = clip.Clip(
            id=f"walk-{index}", frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world,
            place=r.place, region=r.region, seed=r.seed, tags=r.tags, caption="a wall",
        )  # fmt: skip
        entries.append(clip.write_clip(folder, made, actions=Actions(), crf=10, reasons=[], measures={}))
    clip.write_index(folder, entries, {})
    return [folder]


def steady(num_frames: int = 20) -> pose_net.Walk:
    """Two degrees to the right and 0.1 forward a frame; picture t is all t."""
    poses = torch.from_numpy(synthetic.track(np.full(num_frames - 1, 2.0)))
    shown = torch.arange(num_frames, dtype=torch.uint8)[:, None, None].expand(-1, SMALL.height, SMALL.width)
    return pose_net.Walk(shown, poses)


def trained(clips: list[Path], out: Path, run: Run | None = None) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    pose_net.main(QUICK, clips=clips, out=out, run=run or Run.silent())
    return weights.load_pose_net(out).state_dict()


def one_step(clips: list[Path], out: Path) -> None:
    precision.native_bfloat16 = lambda device: False  # type: ignore[assignment]
    mesh = meshes.joined(Parallel())
    pose_net.main(replace(QUICK, steps=1), clips=clips, out=out, run=Run.silent(), mesh=mesh)


def test_two_processes_have_the_gradient_of_one(clips: list[Path], tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        ranks.run(one_step, world, clips, tmp_path / str(world))
        found.append(first_moment(OFTEN.place(tmp_path / str(world)), "pose_net"))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


def test_resumed_equals_uninterrupted(clips, tmp_path):
    whole, resumed = whole_and_resumed(pose_net.main, QUICK, tmp_path, killed_at=2, clips=clips)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_turns_of_held_out_walks_are_read(clips, tmp_path):
    cfg = replace(
        QUICK,
        steps=60,
        batch=6,
        optimizer=Optimizer(learning_rate=5e-3, warmup=5),
        checkpoint=Checkpointing(every_s=60),
    )
    found = pose_net.main(cfg, clips=clips, out=tmp_path, run=Run.silent())
    assert found["rot_deg_still"] == pytest.approx(np.abs([turns(6), turns(7)]).mean())
    assert found["rot_deg"] < 0.4 * found["rot_deg_still"]


def test_units_are_the_mean_step_and_the_mean_turn():
    units = pose_net.units_of([steady()])
    expected = torch.tensor([0.1] * 3 + [TWO_DEGREES] * 3).double()
    torch.testing.assert_close(units, expected, atol=1e-6, rtol=0)


def test_a_piece_that_skips_frames_moves_twice_as_fast():
    for skipping, factor in ((0.0, 1), (1.0, 2)):
        shown, true = pose_net.pieces([steady()], replace(QUICK, skipping=skipping), np.random.default_rng(0))
        torch.testing.assert_close(shown.diff(dim=1) * 255, torch.full((2, 5, 32, 48), float(factor)))
        torch.testing.assert_close(true[..., 4], torch.full((2, 5), factor * TWO_DEGREES).double())


def test_a_piece_is_as_long_as_the_shortest_walk_at_most():
    shown, true = pose_net.pieces([steady(), steady(4)], QUICK, np.random.default_rng(0))
    assert (shown.shape, true.shape) == ((2, 4, 32, 48), (2, 3, 6))


def test_every_piece_is_spoilt_in_its_own_way():
    shown = torch.rand(1, 9, 32, 48, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    spoilt = pose_net.spoilt(shown, replace(QUICK, noise=0), np.random.default_rng(0))
    assert spoilt.shape == shown.shape
    assert min((a - b).abs().mean() for i, a in enumerate(spoilt) for b in spoilt[:i]) > 0.01


def test_the_error_of_the_true_motions_at_another_scale_is_0():
    walk = steady()
    estimated = motions(walk.poses) * torch.tensor([3.0, 3, 3, 1, 1, 1])
    assert pose_net.errors([estimated], [walk], 0.1) == pytest.approx((0, 0), abs=1e-6)


def test_errors_are_degrees_and_mean_steps_a_frame():
    walk = steady()
    rotation, translation = pose_net.errors([0 * motions(walk.poses)], [walk], 0.1)
    assert (rotation, translation) == pytest.approx((2.0, 1.0))
    aside = motions(walk.poses) + torch.tensor([0.1, 0, 0, 0, np.radians(0.5), 0])
    rotation, translation = pose_net.errors([aside], [walk], 0.1)
    assert (rotation, translation) == pytest.approx((0.5, np.sqrt(0.5)), abs=0.03)
    assert integrate(aside).shape == walk.poses.shape
