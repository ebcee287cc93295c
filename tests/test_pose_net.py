"""The pose estimator, before it has learned anything."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from relic.geometry import se3
from relic.model import config, weights
from relic.model.pose_net import MIRROR, PoseNet, flow_and_evidence, integrate, motions, pictures, track

CFG = config.PoseNet(height=32, width=48, widths=(8, 8, 8), hidden=8)


def net() -> PoseNet:
    """A network that reads motions of order 0.1."""
    torch.manual_seed(0)
    made = PoseNet(CFG).eval()
    torch.nn.init.normal_(made.layers[-1].get_parameter("weight"), std=20)
    made.units.copy_(torch.tensor([0.2, 0.2, 0.2, 0.03, 0.03, 0.03]))
    return made


def video(num_frames: int = 7, batch: int = 2) -> Tensor:
    """Frames [B, F_px, 3, 32, 48] of clouds that drift to the right and change."""
    generator = torch.Generator().manual_seed(1)
    clouds = torch.rand(batch, 3 * num_frames, 12, 30, generator=generator)
    clouds = functional.interpolate(clouds, (32, 80), mode="bicubic").clamp(0, 1).unflatten(1, (num_frames, 3))
    still = clouds[:, :1].expand_as(clouds)
    return torch.stack([torch.lerp(still, clouds, 0.1)[:, t, :, :, t : t + 48] for t in range(num_frames)], 1)


def walk(num_frames: int = 6) -> Tensor:
    """A track [F_px, 4, 4] from the identity, with six degrees of freedom."""
    generator = torch.Generator().manual_seed(2)
    return integrate(torch.randn(num_frames - 1, 6, generator=generator, dtype=torch.float64))


def test_a_motion_a_step_and_a_pose_a_frame():
    frames = video()
    assert net()(pictures(frames, CFG)).shape == (2, 6, 6)
    poses = track(net(), frames)
    assert (poses.shape, poses.dtype) == ((2, 7, 4, 4), torch.float64)
    assert torch.equal(poses[:, 0], torch.eye(4).double().expand(2, 4, 4))


def test_integrating_motions_gives_the_track_back():
    torch.testing.assert_close(integrate(motions(walk())), walk(), atol=1e-9, rtol=0)


def test_the_way_back_has_the_negative_motions():
    torch.testing.assert_close(motions(walk().flip(0)), -motions(walk()).flip(0), atol=1e-9, rtol=0)


def test_a_mirrored_track_has_the_mirrored_motions():
    swap = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    expected = motions(walk()) * torch.tensor(MIRROR)
    torch.testing.assert_close(motions(swap @ walk() @ swap), expected, atol=1e-9, rtol=0)


def test_a_track_is_the_sum_of_its_steps_in_mean_steps(monkeypatch):
    quarter = math.pi / 2 / 0.03
    ahead, turn = [0, 0, 2, 0, 0, 0], [0, 0, 0, 0, quarter, 0]
    monkeypatch.setattr(PoseNet, "forward", lambda self, pictures: torch.tensor([[ahead, turn, ahead]]))
    last = track(net(), video(4, batch=1))[0, -1]
    torch.testing.assert_close(last[:3, 3], torch.tensor([2.0, 0, 2]).double(), atol=1e-5, rtol=0)
    right = se3.axis_rotation(1, torch.tensor(math.pi / 2).double())
    torch.testing.assert_close(last[:3, :3], right, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_video_played_backwards_gives_the_inverse_motions():
    shown = pictures(video(), CFG)
    forth = net()(shown)
    assert forth.abs().mean() > 0.01
    torch.testing.assert_close(net()(shown.flip(1)), -forth.flip(1), atol=1e-5, rtol=0)


def test_a_frozen_video_does_not_move():
    frames = video()[:, :1].expand(-1, 5, -1, -1, -1)
    assert torch.equal(track(net(), frames), torch.eye(4).double().expand(2, 5, 4, 4))


@torch.inference_mode()
def test_a_mirrored_video_gives_the_mirrored_motions():
    shown = pictures(video(), CFG)
    torch.testing.assert_close(net()(shown.flip(-1)), net()(shown) * torch.tensor(MIRROR), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_motion_is_read_from_the_steps_within_reach():
    shown = pictures(video(9), CFG)
    whole, piece = net()(shown), net()(shown[:, 1:8])
    torch.testing.assert_close(piece[:, 2:4], whole[:, 3:5], atol=1e-4, rtol=0)
    assert (piece[:, 1] - whole[:, 2]).abs().max() > 1e-2


@pytest.mark.parametrize(("right", "down"), [(0.5, 0.0), (-2.0, 1.0), (4.0, -3.0)])
def test_the_flow_of_a_picture_that_slides_is_its_shift(right: float, down: float):
    def seen(x: float, y: float) -> Tensor:
        row, column = torch.arange(64)[:, None] - y, torch.arange(96) - x
        return (0.5 + 0.2 * (column / 3).sin() + 0.2 * (row / 4 + column / 9).cos())[None, None]

    flow, _ = flow_and_evidence(seen(0, 0), seen(right, down))
    found = flow[0, :, 3:-3, 3:-3].mean((-2, -1))
    torch.testing.assert_close(found, torch.tensor([right, down]), atol=0.1, rtol=0)


def test_frames_of_another_size_are_scaled_by_their_mean():
    checks = 0.1 * torch.tensor([[1.0, -1], [-1, 1]]).repeat(32, 48)
    large = video().repeat_interleave(2, -1).repeat_interleave(2, -2) + checks
    torch.testing.assert_close(pictures(large, CFG), pictures(video(), CFG), atol=1e-6, rtol=0)


def test_a_size_that_cells_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="pictures are 96x60 pixels"):
        config.PoseNet(height=60)


def test_what_was_saved_is_loaded(tmp_path):
    weights.save(net(), tmp_path)
    loaded = weights.load_pose_net(tmp_path)
    assert loaded.cfg == CFG
    assert torch.equal(track(loaded, video()), track(net(), video()))
