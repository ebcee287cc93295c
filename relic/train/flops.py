"""How many floating-point operations a pass through the transformer takes, in closed form: its matrix products, an
addition and a multiplication counted as two, as torch's FlopCounterMode does. No torch, no network is built.

Where N tokens see M, a block takes 2 N (6 D^2 + 2 D ffn) for its linear layers, 4 N M D for self-attention and 4 N L D
for cross-attention over L words, whose keys and values take 4 L D^2 more. Around the blocks it is little.
"""

from typing import NamedTuple

from relic.memory.config import pooled_tokens
from relic.model.config import Transformer
from relic.train.footprint import CONTROLS, Pass


class Flops(NamedTuple):
    linear: int
    attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.cross_attention


def forward(cfg: Transformer, given: Pass) -> Flops:
    """What a pass takes, without its gradient."""
    width, tokens, words = cfg.width, given.tokens, cfg.text_tokens
    patch = cfg.latent_channels * cfg.patch[1] * cfg.patch[2]
    control = sum(4 * features * cfg.control_width + cfg.control_width**2 + cfg.layers * cfg.control_width * width
                  for features in CONTROLS)  # fmt: skip
    a_token = cfg.layers * (6 * width**2 + 2 * width * cfg.ffn) + 2 * patch * width
    a_latent = cfg.frequency_width * width + 7 * width**2 + control
    a_word = cfg.layers * 2 * width**2 + cfg.text_width * width + width**2
    each = 4 * given.batch * cfg.layers * width  # q k^T, and what it weighs of v
    return Flops(
        linear=2 * given.batch * (tokens * a_token + given.latents * a_latent + words * a_word),
        attention=each * pairs(given),
        cross_attention=each * tokens * words,
    )


def pairs(given: Pass) -> int:
    """Pairs of a query and a key that it sees, of one sample."""
    if not given.segments:
        return given.tokens * (given.past + given.tokens)
    seen = [
        (segment.stop - segment.start)
        * sum(pooled_tokens(given.rows, given.columns, stride) for _, stride in segment.seen)
        for segment in given.segments
    ]
    return given.rows * given.columns * sum(seen)
