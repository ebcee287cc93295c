"""The closed form of a pass's FLOPs: against torch's counter, and against the cost that the paper's sizes lead to."""

from dataclasses import replace

import pytest
from rollout import counted_by_torch

from relic import recipes
from relic.memory import masks
from relic.memory.config import Memory
from relic.model.config import Transformer
from relic.train import flops, footprint
from relic.train.footprint import Pass

TINY = Transformer(width=48, ffn=64, layers=2, heads=2, latent_channels=4, text_width=8, text_tokens=4)
LAYER = replace(recipes.wan_1b().teacher.model, layers=1)
WORDS = replace(TINY, text_vocabulary=0, text_width=160, text_tokens=40)
SEGMENTS = masks.hybrid(8, 2, 2, Memory(window=2, capacity=8))
CASES = {
    "alone": (TINY, Pass(latents=3, rows=4, columns=6)),
    "over a past": (TINY, Pass(latents=2, rows=4, columns=6, past=300)),
    "segments": (TINY, Pass(latents=8, rows=4, columns=6, segments=SEGMENTS)),
    "many words": (WORDS, Pass(latents=2, rows=4, columns=6, past=100)),
    "a layer of 1.3B": (LAYER, Pass(latents=4, rows=30, columns=52, past=31_200 - 4 * 1560)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_what_torch_counts(case: str) -> None:
    cfg, given = CASES[case]
    assert flops.forward(cfg, given).total == pytest.approx(counted_by_torch(cfg, given), rel=0.01)  # 5 % is promised


def test_samples_are_counted_each() -> None:
    cfg, given = CASES["over a past"]
    assert flops.forward(cfg, replace(given, batch=3)).total == 3 * flops.forward(cfg, given).total


def test_a_pass_of_the_14b_over_the_papers_memory() -> None:
    cfg, given = recipes.relic_14b().teacher.model, Pass(latents=4, rows=30, columns=52, past=31_200 - 4 * 1560)
    found = flops.forward(cfg, given)
    assert found.attention / 1e12 == pytest.approx(159, rel=0.005)
    # 178 if every weight met every token. Cross-attention's keys and values, and the modulation, do not
    assert 2 * given.tokens * footprint.wan_parameters(cfg) / 1e12 == pytest.approx(178, rel=0.005)
    rarely_met = cfg.layers * 2 * cfg.width**2 + 6 * cfg.width**2
    assert found.linear / 1e12 == pytest.approx(178 - 2 * given.tokens * rarely_met / 1e12, rel=0.02)


@pytest.mark.parametrize(
    ("name", "seen", "petaflop"),
    [("relic_14b", 31_200, 1.69), ("relic_14b", 124_800, 4.1), ("wan_1b", 31_200, 0.27), ("wan_1b", 124_800, 0.8)],
)
def test_a_second_of_video_costs_five_passes(name: str, seen: int, petaflop: float) -> None:
    cfg, given = recipes.named(name).teacher.model, Pass(latents=4, rows=30, columns=52, past=seen - 4 * 1560)
    found = flops.forward(cfg, given)
    every_weight_meets_every_token = 2 * given.tokens * footprint.wan_parameters(cfg) + found.attention
    assert 5 * every_weight_meets_every_token / 1e15 == pytest.approx(petaflop, rel=0.02)
    assert 0.92 < found.total / every_weight_meets_every_token < 1
