"""RELIC's compressed memory."""

import itertools
from collections import deque
from typing import Any

import pytest
import torch
from tiny_models import grid, remembered, turned_by

from relic.memory.cache import Memory
from relic.memory.config import POLICIES, SCHEDULE
from relic.memory.config import Memory as Config
from relic.memory.pooling import pool

ROWS, COLUMNS, LAYERS, HEADS, WIDTH = 4, 6, 2, 2, 8
WHOLE = ROWS * COLUMNS
EVERY = slice(None)


def memory(batch: int = 1, **dials) -> Memory:
    cfg = Config(**{"window": 4, "capacity": 16, "dtype": "fp32", "landmarks": 4, "retrieved": 2, **dials})
    return Memory(cfg, layers=LAYERS, batch=batch, rows=ROWS, columns=COLUMNS, heads=HEADS, head_width=WIDTH)


def latent(index: int, batch: int = 1) -> torch.Tensor:
    """Keys of a latent [layers, B, tokens, K, head_width]; its values are their negative."""
    return torch.randn(LAYERS, batch, WHOLE, HEADS, WIDTH, generator=torch.Generator().manual_seed(index))


def cameras(latents: range, batch: int = 1) -> torch.Tensor:
    poses = torch.eye(4).repeat(batch, len(latents), 1, 1)
    poses[..., 0, 3] = torch.tensor([float(i) for i in latents])
    return poses


def walk(made: Memory, count: int, chunk: int = 2) -> Memory:
    """The next `count` latents, chunk by chunk."""
    for start in range(made.num_latents, made.num_latents + count, chunk):
        made.reserve(chunk)
        made.parts(cameras(range(start, start + chunk), made.batch))
        keys = torch.cat([latent(i, made.batch) for i in range(start, start + chunk)], 2)
        made.append(keys, -keys, poses=cameras(range(start, start + chunk), made.batch))
    return made


def filled(count: int, chunk: int = 2, **dials) -> Memory:
    return walk(memory(**dials), count, chunk)


def test_without_compression_it_gives_back_what_was_appended():
    for dials in ({"schedule": (1,)}, {"policy": "full"}):
        keys, values, _ = remembered(filled(12, **dials))
        assert torch.equal(keys, torch.cat([latent(i) for i in range(12)], 2))
        assert torch.equal(values, -keys)


def test_the_window_is_whole_and_older_latents_follow_the_schedule():
    strides = [slot.stride for slot in filled(12).slots]
    assert strides == [*SCHEDULE[:8], 1, 1, 1, 1]


def test_what_is_shown_is_what_the_slots_say():
    for policy, count in itertools.product(("full", "window", "relic"), (2, 6, 12, 40)):
        made = filled(count, policy=policy)
        times = remembered(made)[2][:, 0]
        found = [(int(t), int((times == t).sum())) for t in times.unique()]
        size = {1: WHOLE, 2: 6, 4: 2}
        assert found == [(made.time(latent), size[stride]) for latent, stride in made.slots], (policy, count)


def test_the_window_policy_forgets_all_but_the_image_and_the_window():
    keys, _, positions = remembered(filled(12, policy="window"))
    assert positions[:, 0].unique().tolist() == [0, 8, 9, 10, 11]
    assert torch.equal(keys, torch.cat([latent(i) for i in (0, 8, 9, 10, 11)], 2))


def test_what_leaves_the_window_is_its_mean_over_cells():
    for index in (1, 2, 18, 19):
        made = filled(24, capacity=40)
        keys, _, positions = remembered(made)
        x = latent(index).unflatten(2, (ROWS, COLUMNS)).flatten(-2)
        pooled = pool(x, made.cfg.stride(index)).flatten(2, 3).unflatten(-1, (HEADS, WIDTH))
        torch.testing.assert_close(keys[:, :, positions[:, 0] == index], pooled)


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_of_any_size_leave_the_same_memory(policy: str):
    one, four = (filled(36, chunk=c, policy=policy, dtype="fp8", capacity=12) for c in (1, 4))
    one.reserve(4)
    four.reserve(4)
    ahead = cameras(range(36, 40))
    for a, b in zip(one.parts(ahead), four.parts(ahead), strict=True):
        assert torch.equal(a.read(EVERY), b.read(EVERY))
        assert torch.equal(a.positions, b.positions)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_walk_of_2000_latents_runs_in_the_same_bytes(policy: str):
    made = filled(4, policy=policy)
    before, stores = made.num_bytes, {id(store) for store in [*made.pages.values(), *made.free]}
    walk(made, 1996)
    assert made.num_bytes == before
    assert {id(store) for store in [*made.pages.values(), *made.free]} == stores
    assert made.slots[0].latent == 0
    keys = made.parts(cameras(range(2000, 2002)))[0].read(EVERY)[0]
    assert torch.equal(keys, latent(0))
    assert max(part.positions[..., 0].max() for part in made.parts(cameras(range(2000, 2002)))) == 15


def test_no_walk_shows_more_than_its_room():
    cfg = Config(window=4, capacity=16)
    shown = [cfg.tokens(ROWS, COLUMNS, n, 2) for n in range(2, 400, 2)]
    assert max(shown) <= cfg.room(ROWS, COLUMNS, 2)
    made, seen = memory(), []
    for _ in range(60):
        walk(made, 2)
        made.reserve(2)
        seen.append(sum(part.positions.shape[0] for part in made.parts()))
    assert seen == shown[:60]


def test_the_papers_walk_takes_31512_tokens():
    cfg = Config(window=8, capacity=80, dtype="bf16")
    made = Memory(cfg, layers=1, batch=1, rows=30, columns=52, heads=1, head_width=2)
    for _ in range(20):
        made.append(torch.zeros(1, 1, 4 * 1560, 1, 2), torch.zeros(1, 1, 4 * 1560, 1, 2))
    shown = sum(part.positions.shape[0] for part in made.parts())
    assert shown == cfg.tokens(30, 52, 80) == 31512
    assert Config(policy="full").tokens(30, 52, 80) == 124800


@pytest.mark.parametrize("policy", POLICIES)
def test_appending_touches_as_much_late_as_early(policy: str):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                self.numbers += made.numel()
            self.calls += 1
            return made

        numbers = calls = 0

    found = []
    for before in (20, 2000):  # at the same place of the schedule
        made = filled(before, policy=policy)
        keys = torch.cat([latent(i) for i in (1, 2)], 2)
        made.reserve(2)
        with Counting() as counting:
            made.append(keys, keys, poses=cameras(range(before, before + 2)))
        found.append((counting.calls, counting.numbers))
    assert found[0] == found[1]


def test_landmarks_come_whole_beside_the_pooled():
    made = filled(20, policy="relic_landmarks", schedule=(4,), capacity=40)
    back = cameras(range(5, 7))
    part = made.parts(back)[-2]
    assert sorted(part.positions[0, :, 0].unique().tolist())[0] <= 6
    shown = [int(t) for t in part.positions[0, ::WHOLE, 0]]
    assert torch.equal(part.read(EVERY)[0], torch.cat([latent(t) for t in shown], 2))
    assert abs(shown[0] - 5.5) < 3


def test_landmarks_outlive_the_capacity():
    made = memory(policy="relic_landmarks", landmarks=2, retrieved=1)
    apart = cameras(range(500, 501))  # one view unlike all others
    for index in range(60):
        made.reserve(1)
        made.append(latent(index), -latent(index), poses=apart if index == 7 else cameras(range(1)))
    part = made.parts(apart)[-2]
    assert torch.equal(part.read(EVERY)[0], latent(7))
    assert part.positions[..., 0].unique().tolist() == [0.0]


def state(made: Memory) -> list[torch.Tensor]:
    ahead = cameras(range(made.num_latents, made.num_latents + 2))
    return [x for part in made.parts(ahead) for x in (part.read(EVERY), part.positions)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_branch_goes_on_as_if_it_were_alone(policy: str):
    made = filled(30, policy=policy)
    snapshot = made.branch()
    walk(made, 30)
    again = walk(snapshot.branch(), 30)
    assert all(map(torch.equal, state(made), state(again)))
    assert all(map(torch.equal, state(snapshot), state(filled(30, policy=policy))))


def test_a_branch_copies_the_window_and_no_more():
    made = filled(30)
    branch = made.branch()
    assert all(branch.pages[number] is page for number, page in made.pages.items())
    assert branch.window is not made.window
    assert branch.free == []


def test_whoever_first_changes_the_landmarks_copies_them_and_the_other_keeps_them():
    made = filled(30, policy="relic_landmarks")
    branch, bank = made.branch(), made.landmarks.store
    walk(branch, 2)
    assert branch.landmarks.store is not bank
    walk(made, 2)
    assert made.landmarks.store is bank


def test_a_page_that_two_memories_had_is_used_again_by_the_last():
    made = filled(30)
    branch = made.branch()
    walk(branch, 60)
    walk(made, 60)
    assert len(made.free) + len(made.pages) == len(filled(2).free) + 1


@pytest.mark.parametrize("policy", ["relic", "relic_landmarks"])
def test_what_only_a_dropped_branch_shared_is_written_without_a_copy(policy: str):
    made = filled(30, policy=policy)
    before = {id(store) for store in made.stores}
    branch = made.branch()
    del branch
    walk(made, 60)
    assert {id(store) for store in made.stores} == before


def test_four_moments_of_a_walk_at_1_3b_take_twice_what_it_takes_itself():
    made = Memory(Config(), layers=1, batch=1, rows=30, columns=52, heads=12, head_width=128, device="meta")
    keys = torch.zeros(1, 1, 4 * 1560, 12, 128, device="meta")
    moments, held, blocks = deque[Memory](maxlen=4), [], 30
    for chunk in range(60):  # a moment every two seconds
        made.reserve(4)
        made.append(keys, keys)
        if chunk % 2 == 0:
            moments.append(made.branch())
        stores = {id(store): store.num_bytes for one in (made, *moments) for store in one.stores}
        held.append(blocks * sum(stores.values()) / 2**30)
    assert blocks * made.num_bytes / 2**30 == pytest.approx(3.3, abs=0.05)
    assert max(held) == pytest.approx(10.1, abs=0.05)  # docs/serving.md


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_and_its_branches_take_what_is_said_at_most(policy: str, every: int):
    held, points, dials = list[int](), 3, dict[str, Any](policy=policy, schedule=(1, 2, 4))
    for phase in range(every):
        made, branches = memory(**dials), deque[Memory]()
        for chunk in range(60):
            walk(made, 2)
            if chunk % every == phase:
                branches.append(made.branch())
            stores = {id(store): store.num_bytes for one in (made, *branches) for store in one.stores}
            held.append(sum(stores.values()))
            if len(branches) > points:
                branches.popleft()
    most = memory(**dials).most_bytes(points=points, every=2 * every)
    assert 0.8 * most < max(held) <= most


def test_rotating_before_pooling_would_cancel_fast_frequencies():
    from relic.model import rope

    table = rope.frequencies(48, trained_frames=8, frames=8)
    positions = grid(torch.zeros(1), 8, 8)
    key = torch.ones(1, 64, 1, 48)
    rotated = turned_by(key, rope.angles(positions, table))
    rotated_first = pool(rotated.reshape(1, 8, 8, 48), 4)
    fast = slice(16, 18)  # the fastest pair of the rows
    assert rotated_first[..., fast].norm(dim=-1).max() < 0.6 * 2**0.5


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int4'; allowed are fp8"):
        Config(dtype="int4")
