"""Pinhole cameras."""

import torch

from relic.geometry import camera


def test_a_ray_projects_onto_its_own_pixel_centre():
    intrinsics = torch.tensor([48.0, 48.0, 48.0, 32.0], dtype=torch.float64)
    pixels, depth = camera.project(camera.rays(intrinsics, 64, 96) * 7, intrinsics)
    assert pixels[0, 0].tolist() == [0.5, 0.5]
    assert pixels[63, 95].tolist() == [95.5, 63.5]
    assert depth.eq(7).all()


def test_the_middle_ray_looks_along_the_axis():
    rays = camera.rays(torch.tensor([10.0, 10.0, 1.5, 1.5]), 3, 3)
    torch.testing.assert_close(rays[1, 1], torch.tensor([0.0, 0.0, 1.0]))
