"""Houses: wings apart, passages that can be walked through, room between walls and blocks."""

import pytest
import torch

from relic.worlds.config import Rooms
from relic.worlds.house import NUM_BLOCKS, box_of, build, is_free

CFG = Rooms()
NUM_ROOMS = CFG.rooms_a_side**2


@pytest.fixture(scope="module")
def house():
    return build(CFG, 0)


def test_passages_join_boxes_of_one_wing_both_ways(house):
    behind = house.leads_to.view(-1, 6)
    edges = {(here, int(there)) for here, row in enumerate(behind) for there in row if there >= 0}
    assert len(edges) == 4 * (len(behind) - NUM_ROOMS) > 0
    assert all((b, a) in edges and house.known[a] == house.known[b] for a, b in edges)


def test_the_last_column_of_rooms_is_the_known_wing(house):
    west = (house.middle - house.half)[0, :NUM_ROOMS]
    assert house.known[:NUM_ROOMS].sum() == CFG.rooms_a_side
    assert west[house.known[:NUM_ROOMS]].min() > west[~house.known[:NUM_ROOMS]].max()


def test_boxes_do_not_overlap(house):
    apart = (house.middle[:, :, None] - house.middle[:, None]).abs() - (house.half[:, :, None] + house.half[:, None])
    assert (apart.amax(0) + 9 * torch.eye(apart.shape[1])).min() > -1e-4


def test_a_passage_is_free_along_its_middle_and_not_at_its_sides(house):
    for box in range(NUM_ROOMS, len(house.tags)):
        middle, half, along = house.middle[:, box], house.half[:, box], house.through[:, box] > 0
        assert all(is_free(house, middle + share * half * along, 0.3) for share in (-1.0, 0.0, 1.0))
        assert not is_free(house, middle + 0.9 * half * ~along, 0.3)


def test_blocks_stand_a_metre_from_the_walls(house):
    middle, half = house.block_middle.view(3, NUM_BLOCKS, -1), house.block_half.view(3, NUM_BLOCKS, -1)
    real = half.amin(0) > 0
    gap = house.half[:, None] - (middle - house.middle[:, None]).abs() - half
    assert real.any()
    assert gap[:2, real].min() > 1
    assert gap[2, real].min() > -1e-5


def test_a_camera_keeps_its_distance_from_a_block(house):
    middle, half = house.block_middle.view(3, NUM_BLOCKS, -1), house.block_half.view(3, NUM_BLOCKS, -1)
    which, box = (half.amin(0) > 0).nonzero()[0]
    inside, beside = middle[:, which, box], half[:, which, box] * torch.tensor([0, 1, 0])
    assert not is_free(house, inside, 0.1)
    assert not is_free(house, inside + 1.05 * beside, 0.3)


def test_a_point_in_a_wall_is_in_no_box(house):
    assert box_of(house, house.middle).tolist() == list(range(len(house.tags)))
    with pytest.raises(ValueError, match="lies in a wall"):
        box_of(house, torch.full((3, 1), -5.0))


@pytest.mark.parametrize("wrong", [{"fov_deg": 180.0}, {"rooms_a_side": 1}, {"min_room_m": 8.0}, {"clearance_m": 0.7}])
def test_impossible_houses_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Rooms(**wrong)
