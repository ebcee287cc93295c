"""The diffusion transformer."""

import torch
from einops import rearrange
from tiny_models import CFG, conditions, latents, transformer, turned_by

from relic.memory import masks
from relic.memory.config import Memory
from relic.memory.pooling import centres, pool
from relic.model import rope
from relic.model.attention import Rotary, dot_product, segmented
from relic.model.transformer import Transformer

MEMORY = Memory(window=2, capacity=16)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary, segments: tuple) -> torch.Tensor:
    """Reference of `segmented`: one softmax over all latents at all strides, with a mask."""
    keys, values, owner = [], [], []
    frames = len(rotary.times)
    for stride in (1, 2, 4):
        for i in range(frames):
            cell = rearrange(k, "b (f h w) k d -> f b h w (k d)", f=frames, h=rotary.rows)[i]
            pooled = rearrange(pool(cell, stride), "b h w (k d) -> b (h w) k d", k=k.shape[2])
            yx = centres(rotary.rows, rotary.columns, stride).flatten(0, 1)
            position = torch.cat([torch.full((len(yx), 1), float(rotary.times[i]), dtype=yx.dtype), yx], 1)
            keys.append(turned_by(pooled, rope.angles(position, rotary.table)))
            cell = rearrange(v, "b (f h w) k d -> f b h w (k d)", f=frames, h=rotary.rows)[i]
            values.append(rearrange(pool(cell, stride), "b h w (k d) -> b (h w) k d", k=k.shape[2]))
            owner += [(i, stride)] * len(yx)
    tokens = rotary.rows * rotary.columns
    mask = torch.zeros(frames * tokens, len(owner), dtype=torch.bool)
    for s in segments:
        mask[s.start * tokens : s.stop * tokens] = torch.tensor([pair in s.seen for pair in owner])
    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (
        turned_by(q, rotary.angles(1)), torch.cat(keys, 1), torch.cat(values, 1)))  # fmt: skip
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b k n d -> b n k d")


def test_segments_equal_the_dense_mask():
    q, k, v = torch.randn(3, 2, 6 * 24, 2, 24).unbind(0)
    rotary = Rotary(torch.arange(6), 4, 6, rope.frequencies(24, 8, 8), strides={1, 2, 4})
    segments = masks.hybrid(6, 1, 2, MEMORY)
    torch.testing.assert_close(
        segmented(q, k, v, rotary, segments), dense(q, k, v, rotary, segments), atol=1e-5, rtol=0
    )


def test_a_weighed_pooled_token_counts_like_the_cells_it_stands_for():
    q, k, v = torch.randn(3, 2, 4 * 24, 2, 24).unbind(0)
    rotary = Rotary(torch.arange(4), 4, 6, rope.frequencies(24, 8, 8), strides={1, 2})
    weighed = masks.Segment(2, 4, ((0, 2), (2, 1)), weigh_pooled=True)
    repeated = masks.Segment(2, 4, ((0, 2),) * 4 + ((2, 1),))  # each of its tokens stands for 2 x 2
    torch.testing.assert_close(
        segmented(q, k, v, rotary, (weighed,)), segmented(q, k, v, rotary, (repeated,)), atol=1e-5, rtol=0
    )


@torch.inference_mode()
def test_one_segment_that_sees_everything_is_plain_attention():
    model, everything = transformer(), (masks.Segment(0, 4, tuple((i, 1) for i in range(4))),)
    call = (latents(4), torch.full((1, 4), 500.0), conditions(4))
    torch.testing.assert_close(model(*call, segments=everything)[0], model(*call)[0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_later_latents_do_not_change_earlier_ones_under_causal_segments():
    model, segments = transformer(), masks.hybrid(6, 2, 6, MEMORY)
    noisy, levels = latents(6), torch.full((1, 6), 700.0)
    changed = noisy.clone()
    changed[:, 4:] += 1
    a, b = (model(x, levels, conditions(6), segments=segments)[0] for x in (noisy, changed))
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert (a[:, 4:] - b[:, 4:]).abs().max() > 1e-3


@torch.inference_mode()
def test_untrained_control_paths_change_nothing():
    torch.manual_seed(0)
    model = Transformer(CFG).eval()
    torch.nn.init.normal_(model.head.weight)
    call, text = (latents(3), torch.full((1, 3), 500.0)), torch.zeros(1, 4, dtype=torch.int64)
    here, there = (model(*call, conditions(3, seed=seed).with_text(text))[0] for seed in (1, 2))
    assert torch.equal(here, there)


@torch.inference_mode()
def test_actions_poses_and_caption_each_change_the_output():
    model, here, there = transformer(), conditions(3, seed=1), conditions(3, seed=2)
    call = (latents(3), torch.full((1, 3), 500.0))
    base = model(*call, here)[0]
    for changed in (
        type(here)(there.actions, here.poses, here.text),
        type(here)(here.actions, there.poses, here.text),
        type(here)(here.actions, here.poses, there.text),
    ):
        assert (model(*call, changed)[0] - base).abs().max() > 1e-4


@torch.inference_mode()
def test_the_pose_reaches_queries_and_keys_but_not_values():
    model, seen = transformer(), {}
    attention = model.blocks[0].attention
    attention.register_forward_hook(lambda module, inputs, output: seen.update({len(seen): output[1]}))
    for seed in (1, 2):
        base = conditions(3, seed=0)
        model(
            latents(3),
            torch.zeros(1, 3),
            type(base)(base.actions, conditions(3, seed=seed).poses, base.text),
            remember=True,
        )
    assert torch.equal(seen[0].values, seen[1].values)
    assert not torch.equal(seen[0].keys, seen[1].keys)


def test_dot_product_is_softmax_attention():
    q, k, v = torch.randn(3, 1, 5, 2, 8).unbind(0)
    weights = (torch.einsum("bnkd,bmkd->bknm", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(dot_product(q, k, v), torch.einsum("bknm,bmkd->bnkd", weights, v))
