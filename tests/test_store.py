"""Storage in three precisions."""

import torch

from relic.memory.store import Store, power_of_two

EVERY = (slice(None),)


def kept(x: torch.Tensor, dtype: str = "fp8") -> tuple[Store, torch.Tensor]:
    store = Store(dtype, tuple(x.shape), "cpu")
    store.write(EVERY, x)
    return store, store.read(EVERY)


def numbers(spread: float = 3.0) -> torch.Tensor:
    """Rows of very different sizes [tokens, K, head_width]."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(64, 4, 1, generator=generator).mul(spread).exp()
    return torch.randn(64, 4, 32, generator=generator) * sizes


def within_its_bound(found: torch.Tensor, x: torch.Tensor) -> bool:
    floor = x.abs().amax(-1, keepdim=True) * 2**-17
    return bool(((found - x).abs() <= (x.abs() * 2**-4).maximum(floor)).all())


def test_e4m3_rounds_an_entry_by_at_most_a_sixteenth_of_itself():
    x = numbers()
    _, found = kept(x)
    assert within_its_bound(found, x)
    assert not torch.equal(found, x)


def test_so_do_entries_that_are_tiny_beside_their_rows_largest():
    x = torch.full((1, 1, 4096), 225.0)  # just above 224, where the scale doubles
    x[..., 1:] = torch.linspace(1e-6, 0.1, 4095)
    assert within_its_bound(kept(x)[1], x)


def test_one_scale_for_all_would_break_that_bound():
    x = numbers()
    scale = x.abs().max() / 448
    found = (x / scale).to(torch.float8_e4m3fn).float() * scale
    assert not within_its_bound(found, x)


def test_what_is_read_and_written_again_is_the_same():
    _, once = kept(numbers())
    _, twice = kept(once)
    assert torch.equal(once, twice)


def test_scales_are_the_least_powers_of_two_that_reach():
    x = torch.tensor([0.0, 0.3, 0.5, 0.50001, 1.0, 3.0, 1e-30])
    found = power_of_two(x)
    assert found[:6].tolist() == [1.0, 0.5, 0.5, 1.0, 1.0, 4.0]
    assert x[-1] <= found[-1] < 2 * x[-1]


def test_a_row_that_is_not_finite_does_not_become_numbers():
    for wrong in (torch.inf, -torch.inf, torch.nan):
        x = numbers()
        x[3, 1, 5] = wrong
        _, found = kept(x)
        assert not found[3, 1].isfinite().any()
        assert found[:3].isfinite().all()


def test_bfloat16_and_float32_keep_what_they_can():
    x = numbers()
    assert torch.equal(kept(x, "fp32")[1], x)
    assert torch.equal(kept(x, "bf16")[1], x.bfloat16().float())


def test_fp8_takes_a_byte_a_number_and_two_a_row():
    store, _ = kept(numbers())
    assert store.num_bytes == 64 * 4 * (32 + 2)


def test_a_copy_is_its_own():
    store, before = kept(numbers())
    copied = store.copy()
    store.write(EVERY, torch.zeros(64, 4, 32))
    assert torch.equal(copied.read(EVERY), before)
