"""Algorithm 1 and its inverse."""

import math

import pytest
import torch

from relic.geometry import actions, se3
from relic.geometry.config import Actions

EXACT = Actions(translation_dead_zone=0, rotation_dead_zone=0)
USUAL = Actions()


def walk(num_frames: int, turn: float = 0.05, seed: int = 0) -> torch.Tensor:
    """A track [T, 4, 4] with all six motions at once, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(num_frames, 3, dtype=torch.float64, generator=generator) * turn
    displacements = torch.randn(num_frames, 3, dtype=torch.float64, generator=generator)
    poses = [se3.pose(se3.exp(turns[0] * 20), displacements[0] * 50)]
    for w, d in zip(turns[1:], displacements[1:], strict=True):
        poses.append(poses[-1] @ se3.pose(se3.exp(w), d))
    return torch.stack(poses)


def in_own_frame(track: torch.Tensor) -> torch.Tensor:
    """The track seen from its first pose, in mean steps."""
    relative = se3.inverse(track[:1]) @ track
    relative[:, :3, 3] /= actions.mean_step(actions.steps(track)[0])
    return relative


def pan(num_frames: int, degrees: float, position: tuple[float, float, float]) -> torch.Tensor:
    angle = torch.arange(num_frames, dtype=torch.float64) * math.radians(degrees)
    return se3.pose(se3.axis_rotation(1, angle), torch.tensor(position, dtype=torch.float64).expand(num_frames, 3))


def test_integrating_the_annotation_gives_the_track_back():
    track = walk(60)
    back = actions.integrate(actions.annotate(track, EXACT), EXACT)
    torch.testing.assert_close(back, in_own_frame(track), atol=1e-8, rtol=0)


def test_a_pan_far_from_the_origin_is_a_pan_only():
    found = actions.annotate(pan(10, 3.0, (5.0, -2.0, 9.0)), USUAL)
    assert found[1:, actions.ACTIONS.index("pan_right")].allclose(torch.tensor(3.0, dtype=torch.float64))
    assert found[1:].count_nonzero(1).eq(1).all()


def test_the_first_action_is_static():
    found = actions.annotate(walk(5), USUAL)
    assert found[0, actions.STATIC] == 1
    assert found[0, : actions.STATIC].eq(0).all()


def test_a_clip_that_never_moves_is_static_throughout():
    found = actions.annotate(torch.eye(4, dtype=torch.float64).expand(7, 4, 4), USUAL)
    assert found[:, actions.STATIC].eq(1).all()
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "displacement"),
    [("dolly_in", (0, 0, 1)), ("dolly_out", (0, 0, -1)), ("truck_left", (-1, 0, 0)), ("truck_right", (1, 0, 0)),
     ("pedestal_up", (0, -1, 0)), ("pedestal_down", (0, 1, 0))],
)  # fmt: skip
def test_translations_have_their_names(name: str, displacement: tuple[int, int, int]):
    steps = torch.arange(4, dtype=torch.float64)[:, None] * torch.tensor(displacement, dtype=torch.float64)
    turned = se3.pose(torch.eye(3, dtype=torch.float64), steps)
    found = actions.annotate(turned, USUAL)[1:]
    assert found[:, actions.ACTIONS.index(name)].allclose(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "axis", "sign"),
    [
        ("pan_right", 1, 1),
        ("pan_left", 1, -1),
        ("tilt_up", 0, 1),
        ("tilt_down", 0, -1),
        ("roll_cw", 2, 1),
        ("roll_ccw", 2, -1),
    ],
)
def test_rotations_have_their_names(name: str, axis: int, sign: int):
    angle = sign * math.radians(2) * torch.arange(4, dtype=torch.float64)
    found = actions.annotate(se3.pose(se3.axis_rotation(axis, angle), torch.zeros(3, dtype=torch.float64)), USUAL)[1:]
    assert found[:, actions.ACTIONS.index(name)].allclose(torch.tensor(2.0, dtype=torch.float64))
    assert found.count_nonzero(1).eq(1).all()


def test_translations_are_in_mean_steps_of_the_clip():
    track = walk(30)
    scaled = track.clone()
    scaled[:, :3, 3] *= 37
    torch.testing.assert_close(actions.annotate(track, USUAL), actions.annotate(scaled, USUAL))


def test_a_step_that_is_said_replaces_the_clips_own():
    still = pan(5, 0.0, (0, 0, 0))
    still[3:, 2, 3] = 0.5
    found = actions.annotate(still, USUAL, step=torch.tensor(10.0))
    assert found[3, actions.ACTIONS.index("dolly_in")] == 0  # 0.05 steps, in the dead-zone
    assert actions.annotate(still, USUAL)[3, actions.ACTIONS.index("dolly_in")] == 1


def test_integration_goes_on_from_a_start():
    found = actions.annotate(walk(20), EXACT)
    whole = actions.integrate(found, EXACT)
    rest = actions.integrate(found[8:], EXACT, start=whole[7])
    torch.testing.assert_close(rest, whole[8:])


def test_reversing_poses_is_not_flipping_labels():
    angle = torch.arange(10, dtype=torch.float64) * math.radians(5)
    forward = [torch.zeros(3, dtype=torch.float64)]
    rotation = se3.axis_rotation(1, angle)
    for r in rotation[:-1]:
        forward.append(forward[-1] + r[:, 2])
    back = actions.signed(actions.annotate(se3.pose(rotation, torch.stack(forward)).flip(0), EXACT))[1:]
    sideways = back[:, 1].abs().max().item()
    assert sideways == pytest.approx(math.sin(math.radians(5)), abs=1e-6)
