"""Who sees whom while the student is trained: section 4.4.1 and figure 5 of RELIC (hybrid forcing).

A video of B chunks: the first B - K clean (teacher forcing), the last K noisy (diffusion forcing). Everything is causal
by chunk. A clean chunk sees what serving would show it: the window whole, older latents by the memory's policy. A noisy
chunk sees every clean latent as an old one, pooled by its schedule, even those that a walk's window would show whole,
and the earlier noisy ones whole; `beside` has no such difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relic.memory.config import Memory


@dataclass(frozen=True)
class Segment:
    """Queries of the latents [start, stop) and the latents they see, each with its pooling stride (1: whole)."""

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]  # (latent, stride), none twice
    weigh_pooled: bool = False  # pooled tokens weigh as much as the cells they stand for


def hybrid(
    num_latents: int, chunk: int, noisy_chunks: int, memory: Memory, *, landmarks: Sequence[int] = ()
) -> tuple[Segment, ...]:
    """The segments of a video of `num_latents`, whose last `noisy_chunks` chunks are noisy.

    `landmarks` are the latents that "relic_landmarks" shows whole besides; on a walk it finds them by their poses."""
    starts = range(0, num_latents, chunk)
    first_noisy = starts[max(0, len(starts) - noisy_chunks)] if noisy_chunks else num_latents

    def seen(query: int, latent: int) -> list[tuple[int, int]]:
        pooled = query >= first_noisy and memory.policy != "window"
        if not (latent < first_noisy if pooled else latent < query - memory.window):
            return [(latent, 1)]
        strides = {memory.stride(latent)} | ({1} if latent in landmarks else set())
        return [(latent, stride) for stride in sorted(strides - {0}, reverse=True)]

    segments = []
    for start in starts:
        stop = min(start + chunk, num_latents)
        shown = [pair for latent in range(start) for pair in seen(start, latent)]
        shown += [(latent, 1) for latent in range(start, stop)]
        segments.append(Segment(start, stop, tuple(shown), memory.weigh_pooled))
    return tuple(segments)


def beside(
    num_latents: int, chunk: int, first: int, memory: Memory, *, landmarks: Mapping[int, Sequence[int]] | None = None
) -> tuple[Segment, ...]:
    """The segments of a clean video of `num_latents`, all but its last chunk, behind which stand noisy ones of its
    chunks from latent `first` on: a noisy chunk sees itself and of the clean latents before it what a walk would show.

    So every noisy chunk is trained as it is generated, and all of them in one call. `landmarks` are the latents that
    "relic_landmarks" shows whole to the chunk which begins at the latent that is the key."""
    if first % chunk or num_latents % chunk or not 0 < first < num_latents <= memory.capacity:
        raise ValueError(
            f"the noisy chunks begin at latent {first} of {num_latents}; both must divide by the chunk, {chunk}, "
            f"the first be above 0 and the second from there up to the capacity, {memory.capacity}"
        )
    clean = num_latents - chunk

    def shown(start: int, at: int) -> tuple[tuple[int, int], ...]:
        seen = [(slot.latent, slot.stride) for slot in memory.slots(start)]
        seen += [(latent, 1) for latent in (landmarks or {}).get(start, ()) if (latent, 1) not in seen]
        return (*seen, *((latent, 1) for latent in range(at, at + chunk)))

    segments = [Segment(c, c + chunk, shown(c, c), memory.weigh_pooled) for c in range(0, clean, chunk)]
    for start in range(first, num_latents, chunk):
        at = clean + start - first
        segments.append(Segment(at, at + chunk, shown(start, at), memory.weigh_pooled))
    return tuple(segments)
