"""RELIC's compressed memory."""

import pytest
import torch

from relic.memory.cache import Memory
from relic.memory.config import SCHEDULE
from relic.memory.config import Memory as Config
from relic.memory.pooling import pool

ROWS, COLUMNS, LAYERS, HEADS, WIDTH = 4, 6, 2, 2, 8
WHOLE = ROWS * COLUMNS


def memory(**dials) -> Memory:
    cfg = Config(**{"window": 4, "capacity": 16, "dtype": "fp32", **dials})
    return Memory(cfg, layers=LAYERS, batch=1, rows=ROWS, columns=COLUMNS, heads=HEADS, head_width=WIDTH)


def latents(n: int, seed: int = 0) -> torch.Tensor:
    """Keys or values [layers, B, n * tokens, K, head_width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, 1, n * WHOLE, HEADS, WIDTH, generator=generator)


def filled(count: int, chunk: int = 2, **dials) -> Memory:
    made, x = memory(**dials), latents(count)
    for start in range(0, count, chunk):
        made.reserve(chunk)
        part = x[:, :, start * WHOLE : (start + chunk) * WHOLE]
        made.append(part, -part)
    return made


def test_without_compression_it_gives_back_what_was_appended():
    made = filled(8, schedule=(1,))
    keys, values = made.view()
    assert torch.equal(keys, latents(8))
    assert torch.equal(values, -latents(8))


def test_the_window_is_whole_and_older_latents_follow_the_schedule():
    strides = [slot.stride for slot in filled(12).slots]
    assert strides == [*SCHEDULE[:8], 1, 1, 1, 1]


def test_what_leaves_the_window_is_its_mean_over_cells():
    keys, _ = filled(6).view()
    second = latents(6)[:, :, WHOLE : 2 * WHOLE].unflatten(2, (ROWS, COLUMNS))
    pooled = pool(second.flatten(-2), 4).flatten(2, 3).unflatten(-1, (HEADS, WIDTH))
    torch.testing.assert_close(keys[:, :, WHOLE : WHOLE + pooled.shape[2]], pooled)


def test_chunks_of_any_size_leave_the_same_memory():
    one, four = filled(12, chunk=1), filled(12, chunk=4)
    torch.testing.assert_close(one.view()[0], four.view()[0])
    torch.testing.assert_close(one.positions(), four.positions())


def test_a_long_walk_stays_within_the_capacity_and_keeps_the_first_latent():
    made = filled(60)
    assert len(made.slots) == 16
    assert made.slots[0].latent == 0
    assert made.positions()[:, 0].max() == 15
    assert torch.equal(made.view()[0][:, :, :WHOLE], latents(60)[:, :, :WHOLE])


def test_its_bytes_do_not_grow():
    assert filled(60).num_bytes == filled(4).num_bytes


def test_the_papers_walk_takes_31512_tokens():
    cfg = Config(window=8, capacity=80, dtype="bf16")
    made = Memory(cfg, layers=1, batch=1, rows=30, columns=52, heads=1, head_width=2)
    for _ in range(20):
        made.append(torch.zeros(1, 1, 4 * 1560, 1, 2), torch.zeros(1, 1, 4 * 1560, 1, 2))
    assert made.used == cfg.tokens(30, 52, 80) == 31512


def test_fp8_keeps_each_head_within_its_rounding():
    exact, rounded = filled(4).view()[0], filled(4, dtype="fp8").view()[0]
    largest = exact.abs().amax(-1, keepdim=True)
    assert ((exact - rounded).abs() <= largest * 2**-4).all()
    assert not torch.equal(exact, rounded)


def test_rotating_before_pooling_would_cancel_fast_frequencies():
    from relic.model import rope

    table = rope.frequencies(48, trained_frames=8, frames=8)
    positions = rope.grid(torch.zeros(1), 8, 8)
    key = torch.ones(1, 64, 1, 48)
    rotated = rope.rotate(key, rope.angles(positions, table))
    rotated_first = pool(rotated.reshape(1, 8, 8, 48), 4)
    fast = slice(16, 18)  # the fastest pair of the rows
    assert rotated_first[..., fast].norm(dim=-1).max() < 0.6 * 2**0.5


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int4'; allowed are fp8"):
        Config(dtype="int4")
