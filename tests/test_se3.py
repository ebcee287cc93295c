"""Identities of rotations and rigid motions."""

import torch

from relic.geometry import se3


def vectors(n: int, scale: float) -> torch.Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale


def test_exp_of_log_is_the_rotation():
    rotation = se3.exp(vectors(200, 2.0))
    torch.testing.assert_close(se3.exp(se3.log(rotation)), rotation, atol=1e-9, rtol=0)


def test_log_of_small_rotations_keeps_its_digits():
    vector = vectors(50, 1e-7)
    torch.testing.assert_close(se3.log(se3.exp(vector)), vector, atol=1e-14, rtol=0)


def test_angle_of_a_half_turn_is_180_degrees():
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(se3.angle_degrees(half), torch.tensor(180.0, dtype=torch.float64))


def test_inverse_undoes_a_motion():
    poses = se3.pose(se3.exp(vectors(20, 1.0)), vectors(20, 5.0))
    torch.testing.assert_close(se3.inverse(poses) @ poses, torch.eye(4, dtype=torch.float64).expand(20, 4, 4))


def test_nearest_rotation_of_a_reflection_is_a_rotation():
    mirrored = se3.exp(vectors(10, 1.0)) @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    determinant = torch.linalg.det(se3.nearest_rotation(mirrored))
    torch.testing.assert_close(determinant, torch.ones(10, dtype=torch.float64))


def test_nearest_rotation_keeps_a_rotation():
    rotation = se3.exp(vectors(10, 1.0))
    torch.testing.assert_close(se3.nearest_rotation(rotation), rotation)


def test_a_rotation_about_an_axis_is_the_exponential_of_its_vector():
    angle = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for axis in range(3):
        vector = torch.eye(3, dtype=torch.float64)[axis] * angle[:, None]
        torch.testing.assert_close(se3.axis_rotation(axis, angle), se3.exp(vector))
