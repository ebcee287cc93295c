"""Landmarks: which latents are kept, and which are found again."""

import math

import torch

from relic.memory.landmarks import Landmarks, distance
from relic.memory.store import Store

EVERY = (slice(None), slice(None))


def camera(degrees: float, x: float = 0.0) -> torch.Tensor:
    """A pose [1, 4, 4] that has turned to the right."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    pose[0, 3] = x
    return pose[None]


def bank(count: int, batch: int = 1) -> Landmarks:
    return Landmarks(count, 5.0, Store("fp32", (2, 1, batch, count + 1, 1, 1, 2), "cpu"))


def kept(made: Landmarks, sample: int = 0) -> list[int]:
    usable = [s for s in range(made.filled) if s != made.free[sample]]
    return sorted(made.latents[sample, usable].tolist())


def test_a_step_and_a_turn_of_five_degrees_are_as_far():
    assert torch.isclose(distance(camera(0), camera(5), 5.0), torch.ones(1), atol=1e-3).all()
    assert torch.isclose(distance(camera(0), camera(0, x=1.0), 5.0), torch.ones(1), atol=1e-3).all()
    assert torch.isclose(distance(camera(10), camera(-20, x=2.0), 5.0), torch.full((1,), 8.0), atol=1e-3).all()


def test_of_two_like_views_the_older_stays():
    made = bank(3)
    for latent, degrees in enumerate([0.0, 40.0, 41.0, 90.0, 2.0], start=1):
        made.place(latent, camera(degrees))
    assert kept(made) == [1, 2, 4]


def test_the_nearest_to_where_the_camera_will_be_are_found():
    made = bank(4)
    for latent, degrees in enumerate([0.0, 30.0, 60.0, 90.0], start=1):
        made.place(latent, camera(degrees))
    slots = made.nearest(torch.stack([camera(58.0), camera(85.0)], 1), 2)
    assert sorted(made.latents[0, slots[0]].tolist()) == [3, 4]


def test_the_free_slot_is_never_shown():
    made = bank(2)
    for latent, degrees in enumerate([0.0, 50.0, 51.0], start=1):
        made.place(latent, camera(degrees))
    slots = made.nearest(camera(51.0)[:, None], 2)
    assert sorted(made.latents[0, slots[0]].tolist()) == [1, 2]


def test_every_sample_has_its_own():
    made = bank(2, batch=2)
    for latent, (one, other) in enumerate([(0.0, 0.0), (1.0, 50.0), (90.0, 51.0)], start=1):
        made.place(latent, torch.cat([camera(one), camera(other)]))
    assert [kept(made, 0), kept(made, 1)] == [[1, 3], [1, 2]]


def test_a_branch_goes_its_own_way():
    made = bank(2)
    made.place(1, camera(0.0))
    other = made.branch()
    for landmarks, degrees in ((made, 10.0), (other, 20.0)):
        slot = landmarks.place(2, camera(degrees))
        landmarks.store.write((*EVERY, landmarks.samples, slot), torch.full((2, 1, 1, 1, 1, 2), degrees))
    second = (*EVERY, made.samples, torch.tensor([1]))
    assert [landmarks.store.read(second).unique().item() for landmarks in (made, other)] == [10.0, 20.0]
