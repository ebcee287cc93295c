"""Pinhole cameras."""

import torch

from relic.geometry import camera


def test_a_ray_goes_through_its_own_pixel_centre():
    rays = camera.rays(torch.tensor([48.0, 24.0, 48.0, 32.0]), 64, 96)
    assert (rays[0, 0] * torch.tensor([48.0, 24.0, 1.0])).tolist() == [0.5 - 48, 0.5 - 32, 1]
    assert (rays[63, 95] * torch.tensor([48.0, 24.0, 1.0])).tolist() == [95.5 - 48, 63.5 - 32, 1]


def test_the_middle_ray_looks_along_the_axis():
    rays = camera.rays(torch.tensor([10.0, 10.0, 1.5, 1.5]), 3, 3)
    torch.testing.assert_close(rays[1, 1], torch.tensor([0.0, 0.0, 1.0]))
