"""How many bytes a network and one pass through it take, in closed form: no torch, no network is built.

Three kinds of bytes. The first two are exact; tests/test_planner.py holds the third within 15 % of torch's tracker.

- State. A weight in float32 takes 4 bytes, its gradient 4, AdamW's two moments 8 (Muon's one 4), its average 4.
- Memory. What relic/memory/cache.py allocates, and what it copies when it is read and appended to.
- Activations. What autograd keeps of a pass. `block` counts it tensor by tensor through relic/model/block.py: `low` is
  the width of a number where autocast computes (2 bytes in bfloat16, 4 without it), FLOAT where the code asks for
  float32. A linear layer keeps its input, a norm its input and its normalised input, attention q, k, v and what it
  gives. A pass that remembers also returns every block's keys and values, and they live until it ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from relic.memory import masks
from relic.memory.config import Memory, layers_at_once, pooled_tokens
from relic.model.config import Codec, Transformer
from relic.train.config import Optimizer

FLOAT = 4  # bytes of a float32
BFLOAT16 = 2
MEMORY_BYTES = {"fp8": 1, "bf16": 2, "fp32": 4}
CONTROLS = (13, 12)  # features a frame of the action and the pose encoder


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of a batch: who is in it and what its attention sees."""

    latents: int
    rows: int  # tokens of a latent
    columns: int
    batch: int = 1
    low: int = BFLOAT16  # bytes of a number where autocast computes
    past: int = 0  # remembered tokens that every query sees
    segments: tuple[masks.Segment, ...] = ()  # else: everything sees everything

    @property
    def tokens(self) -> int:
        return self.latents * self.rows * self.columns


def passed(cfg: Transformer, latents: Sequence[int]) -> Pass:
    """The pass of latents of shape [B, F, C, H, W]."""
    batch, length, _, height, width = latents
    return Pass(latents=length, rows=height // cfg.patch[1], columns=width // cfg.patch[2], batch=batch)


# Weights


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def block_matrices(cfg: Transformer) -> int:
    """Weights of the linear layers of a block, without their biases."""
    return 8 * cfg.width**2 + 2 * cfg.width * cfg.ffn


def wan_parameters(cfg: Transformer) -> int:
    """Parameters of Wan's transformer, without RELIC's control paths."""
    width, patch = cfg.width, cfg.latent_channels * cfg.patch[1] * cfg.patch[2]
    biases, norms = 8 * width + cfg.ffn + width, 4 * width + 2 * width
    blocks = cfg.layers * (block_matrices(cfg) + biases + norms + 6 * width)
    text = cfg.text_vocabulary * cfg.text_width + linear(cfg.text_width, width) + linear(width, width)
    time = linear(cfg.frequency_width, width) + linear(width, width) + linear(width, 6 * width)
    return blocks + linear(patch, width) + text + time + 2 * width + linear(width, patch)


def control_parameters(cfg: Transformer) -> int:
    """Parameters of the action and the pose encoder."""
    hidden = sum(linear(4 * features, cfg.control_width) + linear(cfg.control_width, cfg.control_width)
                 for features in CONTROLS)  # fmt: skip
    return hidden + len(CONTROLS) * cfg.layers * linear(cfg.control_width, cfg.width)


def parameters(cfg: Transformer) -> int:
    return wan_parameters(cfg) + control_parameters(cfg)


def linears(cfg: Transformer) -> int:
    """Parameters of linear layers: all but the norms', the modulation's and the words'."""
    return parameters(cfg) - cfg.layers * 12 * cfg.width - 2 * cfg.width - cfg.text_vocabulary * cfg.text_width


def multiplied(cfg: Transformer, low: int) -> int:
    """Bytes of the weights, those of linear layers in what autocast multiplies in."""
    return low * linears(cfg) + FLOAT * (parameters(cfg) - linears(cfg))


def multiplied_block(cfg: Transformer, low: int) -> int:
    """Those of a block."""
    return low * (block_matrices(cfg) + 9 * cfg.width + cfg.ffn) + FLOAT * 12 * cfg.width


def moments(cfg: Transformer, optimizer: Optimizer) -> int:
    """Bytes of the optimiser's moments: two a weight by AdamW, one by Muon, which takes the hidden matrices."""
    width, hidden = cfg.width, cfg.control_width
    inner = cfg.layers * (block_matrices(cfg) + len(CONTROLS) * hidden * width)
    inner += sum(4 * features * hidden + hidden**2 for features in CONTROLS)
    inner += width * (cfg.text_width + width + cfg.frequency_width + width + 6 * width)
    return FLOAT * (2 * parameters(cfg) - (inner if optimizer.muon else 0))


def codec_parameters(cfg: Codec) -> int:
    """Parameters of the small codec: its encoder, one matrix, and TAEHV's decoder."""

    def conv(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs

    widths = cfg.decoder_widths
    count = linear(3 * 4 * 8 * 8, cfg.latent_channels) + conv(cfg.latent_channels, widths[0]) + widths[0]
    for width, following, growth in zip(widths, widths[1:], (1, 2, 2), strict=False):
        count += 3 * (conv(2 * width, width) + 2 * conv(width, width) + 3 * width)
        count += growth * width**2 + conv(width, following)
    return count + conv(widths[3], 3) + 3


def served_bytes(cfg: Transformer) -> int:
    """An export's weights on the GPU: the blocks' matrices in FP8 with a scale an output, the rest in float32."""
    in_fp8 = cfg.layers * block_matrices(cfg)
    scales = cfg.layers * (9 * cfg.width + cfg.ffn)
    return in_fp8 + FLOAT * (parameters(cfg) - in_fp8 + scales)


# Memory


def memory_bytes(cfg: Transformer, memory: Memory, *, rows: int, columns: int, batch: int = 1) -> int:
    """Storage of the memory, as relic/memory/cache.py allocates it; in FP8 a token's head has a scale in bfloat16."""
    scales = BFLOAT16 * cfg.heads if memory.dtype == "fp8" else 0
    row = cfg.width * MEMORY_BYTES[memory.dtype] + scales
    return 2 * cfg.layers * batch * memory.stored(rows, columns) * row


def context_bytes(cfg: Transformer, memory: Memory, chunk: Pass) -> int:
    """What the memory shows to all passes of a chunk, with room for the chunk's own (relic/generate/context.py)."""
    room = memory.room(chunk.rows, chunk.columns, chunk.latents) + chunk.tokens
    return 2 * cfg.layers * chunk.batch * room * cfg.width * chunk.low


def walking(cfg: Transformer, memory: Memory, chunk: Pass, work: float) -> float:
    """The most that a chunk holds beside its memory's storage and its context: while the memory is read, while its
    passes take `work`, or while it is appended to. Reading and appending work on some blocks at a time, in float32."""
    width = cfg.width * chunk.batch
    scaled = 2 if memory.dtype == "fp8" else 1  # before and after the scale
    whole = chunk.rows * chunk.columns
    page = sum(pooled_tokens(chunk.rows, chunk.columns, stride) for stride in memory.page_strides)
    at_once = {
        tokens: tokens * min(cfg.layers, layers_at_once(width, tokens))
        for tokens in (page, memory.window * whole, whole)
    }
    read = 2 * width * FLOAT * max(at_once.values()) * (scaled + 1)
    append = 2 * width * (cfg.layers * chunk.tokens * chunk.low + at_once[whole] * (2 * FLOAT + chunk.low))
    return max(read, work, append)


# Activations


def attended(cfg: Transformer, given: Pass) -> float:
    """Bytes for each channel of a sample that self-attention keeps."""
    tokens = given.tokens
    if given.segments:
        strides = [stride for segment in given.segments for _, stride in segment.seen]
        seen = sum(pooled_tokens(given.rows, given.columns, stride) for stride in strides)
        # pooling keeps keys and values in float32: the same for every stride, or copies of them for each
        pooled = len(set(strides) - {1})
        in_float = 2 * FLOAT * tokens * (pooled if given.low < FLOAT else min(1, pooled))
        # queries; every segment's output, and all of them joined; every segment's keys and values
        return given.low * (3 * tokens + 2 * seen) + in_float
    return given.low * (2 * tokens + 2 * (tokens + given.past))  # queries, output; keys, values


def block(cfg: Transformer, given: Pass) -> float:
    """Bytes of one block's graph."""
    low, tokens, width = given.low, given.tokens, cfg.width
    a_token = (
        2 * (2 * FLOAT + low) * width  # two modulated norms: input, normalised input; what they give
        + 2 * 2 * FLOAT * width  # norms of self-attention's queries and keys
        + (low + low + 2 * FLOAT + low + low) * width  # cross-attention: its norm's input and output, q's norm, q, out
        + 2 * FLOAT * width  # what self-attention and the ffn give, before their gates
        + 2 * low * cfg.ffn  # before and after the activation
        + 2 * FLOAT * cfg.heads  # attention's log-sum-exp, twice
        + 9 * FLOAT  # means and deviations of the norms
    )
    a_latent = ((6 + 2) * FLOAT + 2 * low) * width  # modulation; the controls
    a_word = (2 * FLOAT + 2 * low) * width  # k's norm; k and v
    return given.batch * (
        tokens * a_token + attended(cfg, given) * width + given.latents * a_latent + cfg.text_tokens * a_word
    )


def around(cfg: Transformer, given: Pass) -> float:
    """Bytes of the graph before and after the blocks."""
    low, width = given.low, cfg.width
    patch = cfg.latent_channels * cfg.patch[1] * cfg.patch[2]
    a_token = (2 * FLOAT + low) * width + 2 * FLOAT * patch + low * patch
    a_latent = (6 + 2) * FLOAT * width + 4 * low * width + low * cfg.frequency_width
    a_word = low * (cfg.text_width + 3 * width)
    turns = FLOAT * given.tokens * cfg.head_width  # cosines and sines, of all samples and blocks
    return given.batch * (given.tokens * a_token + given.latents * a_latent + cfg.text_tokens * a_word) + turns


def activations(cfg: Transformer, given: Pass, *, checkpointing: bool = False) -> float:
    """The most bytes that a pass with a graph holds, from its beginning to the end of its backward.

    With checkpointing a block keeps its input only, and its graph is made again in the backward."""
    if not checkpointing:
        return around(cfg, given) + cfg.layers * block(cfg, given)
    one = given.low * given.batch * given.tokens * cfg.width
    return around(cfg, given) + cfg.layers * one + block(cfg, given)


def without_graph(cfg: Transformer, given: Pass, *, remember: bool = True) -> float:
    """The most bytes that a pass without a graph holds: one block at work and, to remember, every block's keys and
    values."""
    working = given.tokens * ((4 * FLOAT + 3 * given.low) * cfg.width + 2 * given.low * cfg.ffn)
    own = 2 * given.low * cfg.layers * given.tokens * cfg.width if remember else 0
    return given.batch * (own + working)
