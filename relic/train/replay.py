"""Replayed back-propagation: section 4.4.2 and eq. 5 of RELIC. A gradient of the whole video by one chunk's graph.

A loss over a video that the student made chunk by chunk needs, by plain autograd, the graphs of all chunks at once. But
its gradient with respect to the video, [B, F, C, H, W], is known as soon as the video is, and needs no graph. Then the
chain rule goes chunk by chunk: the walk is walked again, of every chunk only the pass that made its latents is computed
with autograd, the chunk's slice of the gradient is sent back through it, and its graph is freed before the next.

What a chunk saw is had again by remembering the stored clean latents in order: the walk's own memory has pooled and
dropped it since. That it is the same is asserted by a checksum of every chunk's context. The context is detached, as
in the paper: no gradient runs from a chunk into the ones before it, so the sum of the chunks' gradients is the gradient
of the full graph with detached context, to rounding.
"""

import torch
from torch import Tensor

from relic.generate.rollout import Pass, Rollout


def backward(walk: Rollout, actions: Tensor, latents: Tensor, passes: list[Pass], gradient: Tensor) -> None:
    """Adds d loss / d weights to the weights' gradients, given d loss / d latents.

    walk: a new one, as the one that made the video was in the beginning; actions [B, 4 (F - 1) + 1, 13]; latents and
    gradient [B, F, C, H, W]; one pass a chunk."""
    saw = []
    for last in passes:
        start, done = walk.num_latents, walk.num_frames
        chunk = slice(start, start + last.noisy.shape[1])
        clean = walk.replay(actions[:, done : done + walk.num_actions], last)
        saw.append(walk.context.digest())
        clean.backward(gradient[:, chunk])
        walk.remember(latents[:, chunk], last)
    same = torch.stack([(a == last.saw).all() for a, last in zip(saw, passes, strict=True)])
    assert same.all(), f"the replay of chunk {int(same.int().argmin())} saw another context than the walk"
