"""Who sees whom while the student is trained: section 4.4.1 and figure 5 of RELIC (hybrid forcing).

A video of B chunks: the first B - K clean (teacher forcing), the last K noisy (diffusion forcing). Everything is causal
by chunk. A clean chunk sees what serving would show it: the window whole, older latents pooled. A noisy chunk sees
every clean latent pooled by its schedule and the earlier noisy ones whole.
"""

from dataclasses import dataclass

from relic.memory.config import Memory


@dataclass(frozen=True)
class Segment:
    """Queries of the latents [start, stop) and the latents they see, each with its pooling stride (1: whole)."""

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]  # (latent, stride), in order of time
    weigh_pooled: bool = False  # pooled tokens weigh as much as the cells they stand for


def hybrid(num_latents: int, chunk: int, noisy_chunks: int, memory: Memory) -> tuple[Segment, ...]:
    """The segments of a video of `num_latents`, whose last `noisy_chunks` chunks are noisy."""
    starts = range(0, num_latents, chunk)
    first_noisy = starts[max(0, len(starts) - noisy_chunks)] if noisy_chunks else num_latents

    def stride(query: int, latent: int) -> int:
        pooled_if = latent < first_noisy if query >= first_noisy else latent < query - memory.window
        return memory.stride(latent) if pooled_if else 1

    segments = []
    for start in starts:
        stop = min(start + chunk, num_latents)
        seen = [(i, stride(start, i)) for i in range(start)] + [(i, 1) for i in range(start, stop)]
        segments.append(Segment(start, stop, tuple(seen), memory.weigh_pooled))
    return tuple(segments)
