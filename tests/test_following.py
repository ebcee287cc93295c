"""Does the picture follow the keys? The flow of what the shipped base makes of 20 held-out starts."""

from functools import lru_cache

import motion
import numpy as np
import pytest
import torch

from relic.data import captions
from relic.evaluate.predict import to_bytes
from relic.generate.config import Sampler
from relic.generate.sampler import sample
from relic.geometry.actions import ACTIONS, integrate
from relic.geometry.config import Actions
from relic.model import text, weights
from relic.model.conditions import Conditions
from relic.worlds import doom
from relic.worlds.config import Doom

pytestmark = pytest.mark.slow
STARTS, LATENTS = 20, 5  # one second
FRAMES = 4 * (LATENTS - 1) + 1


def moving(**sizes: float) -> torch.Tensor:
    """Actions [F_px, 13] that go on for the whole second."""
    actions = torch.zeros(FRAMES, 13, dtype=torch.float64)
    for name, size in sizes.items():
        actions[1:, ACTIONS.index(name)] = size
    actions[0, -1] = 1
    return actions


@lru_cache
def starts() -> tuple[torch.Tensor, tuple[str, ...]]:
    """First frames [n, 1, 3, H, W] of held-out walks and their captions."""
    walks = list(doom.record(Doom(), region="known", seed=7, num_clips=STARTS, num_frames=5))
    frames = torch.from_numpy(np.stack([walk.frames[:1] for walk in walks])).movedim(-1, 2).float() / 255
    return frames, tuple(captions.describe(walk.frames, place=walk.place, tags=walk.tags) for walk in walks)


@torch.inference_mode()
def generated(actions: torch.Tensor, *, caption: str | None = None) -> np.ndarray:
    """Videos uint8 [n, F_px, H, W, 3] of the starts, all moving alike."""
    codec = weights.load_codec(weights.start_folder("tiny/codec"))
    model = weights.load_transformer(weights.start_folder("tiny/base"))
    frames, said = starts()
    given = Conditions(
        actions.float().expand(STARTS, -1, -1),
        integrate(actions, Actions()).float().expand(STARTS, -1, -1, -1),
        text.tokenize([caption or one for one in said], model.cfg.text_tokens),
    )
    image = codec.encode(frames)[:, 0]
    latents = sample(model, Sampler(steps=8), image_latent=image, conditions=given, num_latents=LATENTS, seed=0)
    return to_bytes(codec.decode(latents))


@lru_cache
def motions(**sizes: float) -> list[motion.Motion]:
    return [motion.motion(video) for video in generated(moving(**sizes))]


def test_the_measure_knows_a_shift_and_a_zoom():
    y, x = np.mgrid[:64, :96] - np.array([31.5, 47.5])[:, None, None]

    def picture(shift: float, zoom: float) -> np.ndarray:
        u, v = (x - shift) / zoom, y / zoom
        return np.repeat((127 + 60 * np.sin(u / 6) + 50 * np.cos(v / 5 + u / 17))[..., None], 3, -1).astype(np.uint8)

    right = motion.motion(np.stack([picture(1.5 * t, 1.0) for t in range(5)]))
    closer = motion.motion(np.stack([picture(0.0, 1.03**t) for t in range(5)]))
    assert right.right == pytest.approx(6, rel=0.1)
    assert closer.expansion == pytest.approx(0.12, rel=0.25)


def test_turning_left_moves_the_picture_right():
    assert sum(found.right > 0 for found in motions(pan_left=2.0)) >= 16


def test_turning_right_moves_the_picture_left():
    assert sum(found.right < 0 for found in motions(pan_right=2.0)) >= 16


def test_walking_forward_expands_the_picture():
    assert sum(found.expansion > 0 for found in motions(dolly_in=1.0)) >= 16


def test_walking_forward_while_turning_does_both():
    """A turn alone has an expansion of its own in the fit, of either sign: nearer things come in or leave."""
    found = 0
    for turning, sign in (("pan_left", 1), ("pan_right", -1)):
        both, turn = motions(dolly_in=1.0, **{turning: 2.0}), motions(**{turning: 2.0})
        found += sum(sign * a.right > 0 and a.expansion > b.expansion for a, b in zip(both, turn, strict=True))
    assert found >= 32  # of 40


def test_another_caption_changes_the_video():
    walk = moving(dolly_in=1.0)
    own, other = generated(walk), generated(walk, caption="a bright red outdoor courtyard")
    assert np.abs(own.astype(int) - other).mean() > 0.5
