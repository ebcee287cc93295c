"""Attention's backends give what a dense softmax gives."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from relic.memory import masks
from relic.memory.config import Memory
from relic.memory.pooling import log_cells
from relic.model import config, flex, rope
from relic.model.attention import Rotary, dot_product, pooled, segmented

ROWS, COLUMNS, NUM_LATENTS = 10, 15, 7  # a latent is more than one of FlexAttention's blocks, and no multiple of them
FLASH = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None, reason="needs an NVIDIA GPU"
)


def qkv(device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, NUM_LATENTS * ROWS * COLUMNS, 2, 16, generator=generator).to(device)


def rotary(device: str = "cpu") -> Rotary:
    times, table = torch.arange(NUM_LATENTS, device=device), rope.frequencies(16, 21, 21, torch.device(device))
    return Rotary(times, ROWS, COLUMNS, table, strides={1, 2, 4})


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Softmax over all keys [B, M, K, d] under a mask [N, M], in float64; bias [N, M]."""
    q, k, v = q.double(), k.double(), v.double()
    logits = torch.einsum("bnkd,bmkd->bknm", q, k) / q.shape[-1] ** 0.5 + bias
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bknm,bmkd->bnkd", weights, v).float()


def strides_of(segments: tuple[masks.Segment, ...]) -> list[int]:
    return sorted({stride for segment in segments for _, stride in segment.seen})


def turned(q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, strides: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, and rotated keys and values of all latents at the smallest stride, then at the next ..."""
    keys = torch.cat([rope.turn(pooled(k, rotary, s), rotary.turns[s]) for s in strides], 1)
    return rope.turn(q, rotary.turns[1]), keys, torch.cat([pooled(v, rotary, s) for s in strides], 1)


def dense_segments(q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, segments: tuple[masks.Segment, ...]) -> Tensor:
    """All queries over all latents at all strides."""
    strides = strides_of(segments)
    cells = [log_cells(ROWS, COLUMNS, s).flatten() for s in strides]
    parts = [(i, s) for s, c in zip(strides, cells, strict=True) for i in range(NUM_LATENTS) for _ in c]
    rows = [segment for segment in segments for _ in range((segment.stop - segment.start) * ROWS * COLUMNS)]
    by_segment = {segment: torch.tensor([part in segment.seen for part in parts]) for segment in segments}
    weighs = torch.tensor([segment.weigh_pooled for segment in rows])
    bias = torch.cat([c.repeat(NUM_LATENTS) for c in cells]) * weighs[:, None]
    seen = torch.stack([by_segment[segment] for segment in rows])
    return dense(*turned(q, k, v, rotary, strides), seen, bias)


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": ({}, ()),
    "weighed": ({"weigh_pooled": True}, ()),
    "pooled and whole": ({"policy": "relic_landmarks", "landmarks": 2, "retrieved": 2, "weigh_pooled": True}, (1, 3)),
    "not at all": ({"policy": "window"}, ()),
}


@pytest.fixture(params=CASES)
def segments(request: pytest.FixtureRequest) -> tuple[masks.Segment, ...]:
    dials, landmarks = CASES[request.param]
    memory = Memory(window=2, capacity=16, schedule=(1, 4, 2), **dials)
    found = masks.hybrid(NUM_LATENTS, 2, 2, memory, landmarks=landmarks)
    last = [latent for latent, _ in found[-1].seen]
    assert (len(last) > len(set(last))) == bool(landmarks)
    assert (len(set(last)) < NUM_LATENTS) == (request.param == "not at all")
    return found


def test_prefixes_equal_the_dense_mask(segments: tuple[masks.Segment, ...]) -> None:
    q, k, v = qkv()
    given = (q, k, v, rotary(), segments)
    torch.testing.assert_close(segmented(*given), dense_segments(*given), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.inference_mode()
def test_flex_attention_equals_the_dense_mask(
    segments: tuple[masks.Segment, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "kernel", lambda: flex_attention)  # a CPU has its meaning, not its kernel
    q, k, v = qkv()
    given = turned(q, k, v, rotary(), strides_of(segments))
    found = flex.attend(*given, flex.plan(segments, ROWS, COLUMNS, q.device))
    torch.testing.assert_close(found, dense_segments(q, k, v, rotary(), segments), atol=1e-5, rtol=0)


def test_a_block_is_skipped_where_nothing_is_seen_and_unmasked_where_all_is(
    segments: tuple[masks.Segment, ...],
) -> None:
    mask = flex.plan(segments, ROWS, COLUMNS, torch.device("cpu")).mask
    queries, keys = (torch.arange(n) for n in mask.seq_lengths)
    none = torch.tensor(0)
    blocks = [r.split(flex.BLOCK, 1) for r in mask.mask_mod(none, none, queries[:, None], keys).split(flex.BLOCK)]
    some = torch.tensor([[int(block.any()) for block in row] for row in blocks])
    whole = torch.tensor([sum(block.all() and block.numel() == flex.BLOCK**2 for block in row) for row in blocks])
    assert torch.equal(mask.to_dense()[0, 0].long(), some)
    assert mask.full_kv_num_blocks is not None
    assert torch.equal(mask.full_kv_num_blocks[0, 0].long(), whole)
    assert 0 < whole.sum() < some.sum() < some.numel()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_flex_attention_equals_the_dense_mask_on_a_gpu(segments: tuple[masks.Segment, ...]) -> None:
    given = qkv("cuda").requires_grad_()
    q, k, v = given
    out = segmented(q, k, v, rotary("cuda"), segments)
    out.square().sum().backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    expected = dense_segments(q.cpu(), k.cpu(), v.cpu(), rotary(), segments)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-2, rtol=0)


@pytest.mark.gpu
@FLASH
def test_flash_attention_equals_a_dense_softmax() -> None:
    q, k, v = qkv("cuda").bfloat16()
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    expected = dense(q.cpu(), k.cpu(), v.cpu(), seen, torch.zeros(()))
    torch.testing.assert_close(dot_product(q, k, v, backend="flash").float().cpu(), expected, atol=1e-2, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_kernel_that_is_missing_stops_the_run() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        dot_product(q, k, v, backend="flash")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'xformers'; allowed are 'sdpa' and 'flash'"):
        config.Transformer(attention="xformers")
