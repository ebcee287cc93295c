"""Who sees whom in hybrid forcing."""

from relic.memory import masks
from relic.memory.config import Memory

MEMORY = Memory(window=4, capacity=16)


def seen_by(latent: int, num_latents: int = 12, noisy_chunks: int = 2) -> dict[int, int]:
    segments = masks.hybrid(num_latents, 2, noisy_chunks, MEMORY)
    return dict(next(s.seen for s in segments if s.start <= latent < s.stop))


def test_no_chunk_sees_a_later_one():
    for segment in masks.hybrid(12, 2, 3, MEMORY):
        assert [latent for latent, _ in segment.seen] == list(range(segment.stop))


def test_a_noisy_chunk_sees_clean_latents_pooled_and_noisy_ones_whole():
    assert seen_by(10) == {i: MEMORY.stride(i) if i < 8 else 1 for i in range(12)}


def test_a_clean_chunk_sees_what_serving_would_show_it():
    assert seen_by(6) == {0: 1, 1: 4, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1}


def test_diffusion_forcing_alone_compresses_nothing():
    assert set(seen_by(11, noisy_chunks=6).values()) == {1}


def test_teacher_forcing_alone_compresses_all_but_the_last_chunk():
    assert seen_by(11, noisy_chunks=1) == {i: MEMORY.stride(i) if i < 10 else 1 for i in range(12)}
