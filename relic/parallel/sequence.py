"""Sequence parallelism by Ulysses (arXiv 2309.14509): linear layers by tokens, self-attention by heads.

Every latent's tokens are cut into as many pieces as there are processes, so that what belongs to a latent (timestep,
action, pose) goes on being added to [B, F, S, D] with a smaller S. Around self-attention an all-to-all makes of all
heads of some tokens some heads of all tokens, [B, N, K / n, head_width]; so each process keeps its own heads' memory,
and masks, pooling and RoPE are what they are alone.

Gradients. All processes of a group compute the same loss of the same whole output. Each sends its own tokens' gradient
back, times the number of processes: so the mean over all processes, which data parallelism takes anyway, is the sum
over a group and the mean over groups.

Why not `deepspeed.sequence`: its attention wrapper joins the pieces one behind the other, which cuts through latents;
and a core room would import DeepSpeed.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class Sequence(Protocol):
    """How the tokens and heads of one model are shared. S is a latent's number of tokens, S' this process's of them."""

    size: int

    def split(self, x: Tensor) -> Tensor:
        """Own tokens [B, F, S', D] of [B, F, S, D]."""

    def join(self, x: Tensor, tokens: int) -> Tensor:
        """[B, F, S, D] of everyone's [B, F, S', D]; `tokens` is S."""

    def by_heads(self, x: Tensor, tokens: int) -> Tensor:
        """Own heads of all tokens, [B, F, S, K / size, d], of all heads of own tokens, [B, F, S', K, d]."""

    def by_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """The way back."""


class Alone:
    """One process has all of them."""

    size = 1

    def split(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor, tokens: int) -> Tensor:
        return x

    by_heads = by_tokens = join


ALONE = Alone()


class Ulysses:
    """Shared by the processes of a group. The number of heads must be a multiple of theirs; of tokens, any."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def sizes(self, tokens: int) -> list[int]:
        """Tokens of a latent that each process takes; they differ by one at most."""
        return [(tokens + self.size - 1 - rank) // self.size for rank in range(self.size)]

    def split(self, x: Tensor) -> Tensor:
        return x.split(self.sizes(x.shape[2]), 2)[self.rank]

    def join(self, x: Tensor, tokens: int) -> Tensor:
        return Join.apply(x, self, tokens)

    def by_heads(self, x: Tensor, tokens: int) -> Tensor:
        return Exchange.apply(x, self, tokens, True)

    def by_tokens(self, x: Tensor, tokens: int) -> Tensor:
        return Exchange.apply(x, self, tokens, False)


class Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shared: Ulysses, tokens: int) -> Tensor:  # type: ignore[override]
        ctx.shared = shared  # type: ignore[attr-defined]
        sizes = shared.sizes(tokens)
        padded = x.new_zeros(*x.shape[:2], sizes[0], x.shape[3])  # the first takes most
        padded[:, :, : x.shape[2]] = x
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded, group=shared.group)
        return torch.cat([piece[:, :, :size] for piece, size in zip(pieces, sizes, strict=True)], 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.shared.split(gradient) * ctx.shared.size, None, None


class Exchange(torch.autograd.Function):
    """`to_heads`, whose gradient goes `to_tokens`, or the other way round."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shared: Ulysses, tokens: int, by_heads: bool) -> Tensor:  # type: ignore
        ctx.given = shared, tokens, by_heads  # type: ignore[attr-defined]
        return (to_heads if by_heads else to_tokens)(x, shared, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        shared, tokens, by_heads = ctx.given
        return (to_tokens if by_heads else to_heads)(gradient, shared, tokens), None, None, None


def to_heads(x: Tensor, shared: Ulysses, tokens: int) -> Tensor:
    """[B, F, S', K, d] -> [B, F, S, K / size, d]."""
    batch, latents, _, heads, width = x.shape
    sent = rearrange(x, "b f s (n k) d -> n b f s k d", n=shared.size).contiguous()
    shapes = [(batch, latents, size, heads // shared.size, width) for size in shared.sizes(tokens)]
    counts = [torch.Size(shape).numel() for shape in shapes]
    came = x.new_empty(sum(counts))
    dist.all_to_all_single(came, sent.flatten(), counts, [sent[0].numel()] * shared.size, group=shared.group)
    return torch.cat([piece.view(shape) for piece, shape in zip(came.split(counts), shapes, strict=True)], 2)


def to_tokens(x: Tensor, shared: Ulysses, tokens: int) -> Tensor:
    """[B, F, S, K / size, d] -> [B, F, S', K, d]."""
    sizes = shared.sizes(tokens)
    sent = [piece.flatten() for piece in x.split(sizes, 2)]
    own = x[:, :, : sizes[shared.rank]].shape
    came = x.new_empty(shared.size * own.numel())
    counts = [own.numel()] * shared.size
    dist.all_to_all_single(came, torch.cat(sent), counts, [piece.numel() for piece in sent], group=shared.group)
    return rearrange(came.view(shared.size, *own), "n b f s k d -> b f s (n k) d")


def share(model: nn.Module, sequence: Sequence) -> None:
    """Lets the processes of a group compute one model together: whatever of it has tokens or heads takes its part.

    ValueError where the heads cannot be shared equally."""
    for module in model.modules():
        if isinstance(heads := getattr(module, "heads", 0), int) and heads % sequence.size:
            raise ValueError(f"{heads} heads cannot be shared by {sequence.size} processes; sequence must divide them")
        if hasattr(module, "sequence"):
            module.sequence = sequence  # type: ignore[assignment]
