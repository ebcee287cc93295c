"""Spatial pooling."""

import math

import torch
from tiny_models import turned_by

from relic.memory import pooling
from relic.memory.config import pooled_tokens
from relic.model import rope
from relic.model.attention import dot_product


def test_the_edges_are_averaged_over_what_there_is():
    x = torch.arange(6.0).reshape(1, 2, 3, 1)  # rows 0 1 2 / 3 4 5
    assert pooling.pool(x, 2).flatten().tolist() == [2.0, 3.5]


def test_token_counts_are_the_papers():
    counts = [pooled_tokens(30, 52, stride) for stride in (1, 2, 4)]
    assert counts == [1560, 390, 104]


def test_stride_one_keeps_everything():
    x = torch.randn(2, 3, 5, 4)
    assert pooling.pool(x, 1) is x


def test_centres_lie_in_the_middle_of_their_cells():
    yx = pooling.centres(4, 6, 4)
    assert yx.shape == (1, 2, 2)
    assert yx.flatten(0, 1).tolist() == [[1.5, 1.5], [1.5, 4.5]]


def test_a_cell_at_the_edge_stands_for_what_there_is():
    found = pooling.log_cells(4, 6, 4).exp()
    torch.testing.assert_close(found, torch.tensor([[16.0, 8.0]]))


def test_a_picture_is_pooled_so_that_its_patches_are_the_cells():
    x = torch.arange(6.0).repeat_interleave(2).expand(1, 1, 6, 12)  # 3 x 6 patches of 2 x 2, a column each
    small = pooling.pool_picture(x, 2, (2, 2))
    assert small.shape == (1, 1, 4, 6)
    assert small[0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


# What attention makes of pooled keys and values, by smooth fields of several latents of 16 x 24 tokens.

ROWS, COLUMNS, WIDTH, LATENTS = 16, 24, 48, 6


def field(seed: int) -> torch.Tensor:
    """Smooth keys or values [LATENTS, ROWS, COLUMNS, WIDTH]: half a wave at most over rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, ROWS), torch.linspace(0, 1, COLUMNS), indexing="ij")
    waves = [(fy * y + fx * x)[None, :, :, None] * math.pi for fy in (0, 1) for fx in (0, 1)]
    size = torch.randn(len(waves), LATENTS, 1, 1, WIDTH, generator=generator)
    phase = torch.rand(len(waves), LATENTS, 1, 1, WIDTH, generator=generator) * 2 * math.pi
    return torch.stack([s * torch.cos(w + p) for s, w, p in zip(size, waves, phase, strict=True)]).sum(0)


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(1, -1, 1, WIDTH)


def turned(keys: torch.Tensor, stride: int, times: range) -> torch.Tensor:
    yx = pooling.centres(ROWS, COLUMNS, stride).flatten(0, 1)
    positions = torch.cat([torch.cat([torch.full((len(yx), 1), float(t)).double(), yx], -1) for t in times])
    return turned_by(tokens(keys), rope.angles(positions, rope.frequencies(WIDTH, 8, 8)))


def errors(stride: int) -> dict[str, float]:
    """Of attention's output, relative to how it varies: all latents pooled; the older half, plain and weighed."""
    keys, values, times, old = field(0), field(1), range(LATENTS), LATENTS // 2
    q, k, v = turned(field(3)[:1], 1, range(LATENTS, LATENTS + 1)), turned(keys, 1, times), tokens(values)
    small = [pooling.pool(x, stride) for x in (keys, values)]
    pooled_k, pooled_v = turned(small[0], stride, times), tokens(small[1])
    cells, whole = pooled_k.shape[1] * old // LATENTS, k.shape[1] * old // LATENTS
    mixed = torch.cat([pooled_k[:, :cells], k[:, whole:]], 1), torch.cat([pooled_v[:, :cells], v[:, whole:]], 1)
    weight = pooling.log_cells(ROWS, COLUMNS, stride).flatten().repeat(old)
    bias = torch.cat([weight, torch.zeros(k.shape[1] - whole)])
    true = dot_product(q, k, v)
    found = {
        "pooled": dot_product(q, pooled_k, pooled_v),
        "plain": dot_product(q, *mixed),
        "weighed": dot_product(q, *mixed, bias),
    }
    return {name: float((x - true).norm() / (true - true.mean(1, keepdim=True)).norm()) for name, x in found.items()}


def test_pooled_attention_is_near_whole_attention_on_smooth_fields():
    assert errors(2)["pooled"] < 0.03
    assert errors(4)["pooled"] < 0.25


def test_weighing_pooled_tokens_gives_them_the_mass_that_the_plain_form_loses():
    for stride in (2, 4):
        found = errors(stride)
        assert found["weighed"] < 0.2 * found["plain"]


def test_rotating_first_is_about_as_near_at_stride_2_and_nearer_at_stride_4():
    keys, values, times = field(0), field(1), range(LATENTS)
    q, k, v = turned(field(3)[:1], 1, range(LATENTS, LATENTS + 1)), turned(keys, 1, times), tokens(values)
    true, ratios = dot_product(q, k, v), []
    for stride in (2, 4):
        pooled_v = tokens(pooling.pool(values, stride))
        first = turned(pooling.pool(keys, stride), stride, times)
        last = tokens(pooling.pool(k.reshape(keys.shape), stride))
        ratios.append(
            float((dot_product(q, last, pooled_v) - true).norm() / (dot_product(q, first, pooled_v) - true).norm())
        )
    assert 0.5 < ratios[0] < 2
    assert ratios[1] < 0.9
