"""The small video codec."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from vaes import taew2_1

from relic.model import config, weights
from relic.model.codec import Codec, DecoderStream

CFG = config.Codec(decoder_widths=(12, 10, 8, 6))


def codec() -> Codec:
    torch.manual_seed(0)
    made = Codec(CFG).eval()
    made.mean.uniform_(-1, 1)
    made.std.uniform_(0.5, 2)
    return made


@torch.inference_mode()
def test_a_stream_is_decoded_as_the_whole():
    latents = torch.randn(2, 7, 16, 2, 3)
    made = codec()
    stream = made.decoder_stream()
    pieces = [stream.decode(latents[:, a:b]) for a, b in ((0, 1), (1, 2), (2, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(pieces, 1), made.decode(latents), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_frame_counts_are_four_a_latent_and_one_for_the_first():
    latents = codec().encode(torch.rand(1, 13, 3, 16, 24))
    assert latents.shape == (1, 4, 16, 2, 3)
    assert codec().decode(latents).shape == (1, 13, 3, 16, 24)


@torch.inference_mode()
def test_a_latent_does_not_see_later_frames():
    frames = torch.rand(1, 13, 3, 16, 24)
    changed = frames.clone()
    changed[:, 5:] = 0
    made = codec()
    before, after = made.encode(frames), made.encode(changed)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-4


@torch.inference_mode()
def test_the_first_latent_is_that_of_the_single_image():
    frames = torch.rand(1, 9, 3, 16, 24)
    torch.testing.assert_close(codec().encode(frames)[:, :1], codec().encode(frames[:, :1]))


def test_a_video_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="12 frames of 16x24"):
        codec().encode(torch.rand(1, 12, 3, 16, 24))


@torch.inference_mode()
def test_a_stream_keeps_one_input_a_layer_however_long_the_pieces():
    kept = []
    for piece in (1, 2, 5):
        stream = codec().decoder_stream()
        for _ in range(3):
            stream.decode(torch.randn(1, piece, 16, 2, 3))
        kept.append(sum(x.untyped_storage().nbytes() for x in stream.memories.values()))
    assert kept == kept[:1] * 3


class Growing(dict):
    """What another thread writes to, whenever it is gone through."""

    def items(self):
        for pair in super().items():
            yield pair
            self[len(self) + 1000] = pair


def test_what_a_stream_remembers_may_be_asked_for_while_it_decodes():
    stream = codec().decoder_stream()
    stream.decode(torch.randn(1, 1, 16, 2, 3))
    known = stream.tensors().keys()
    stream.memories = Growing(stream.memories)
    assert stream.tensors().keys() == known


def taehv(state: dict[str, Tensor], latents: Tensor) -> Tensor:
    """TAEHV's decoder as published: one time step after another through all layers; the first three frames go."""
    past: dict[int, Tensor] = {}
    frames = []

    def conv(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"decoder.{name}.weight"].float(), state.get(f"decoder.{name}.bias")
        return functional.conv2d(x, weight, bias if bias is None else bias.float(), padding=weight.shape[-1] // 2)

    def step(x: Tensor, stage: int) -> None:
        if stage == 3:
            frames.append(conv("22", x.relu()))
            return
        start = 3 + 6 * stage
        for block in range(start, start + 3):
            before, past[block] = past.get(block, torch.zeros_like(x)), x
            seen = conv(f"{block}.conv.0", torch.cat([x, before], 1)).relu()
            x = (conv(f"{block}.conv.4", conv(f"{block}.conv.2", seen).relu()) + x).relu()
        grown = conv(f"{start + 4}.conv", functional.interpolate(x, scale_factor=2))
        for part in grown.chunk((1, 2, 2)[stage], 1):
            step(conv(f"{start + 5}", part), stage + 1)

    for latent in latents.unbind(1):
        step(conv("1", torch.tanh(latent / 3) * 3).relu(), 0)
    return torch.stack(frames, 1)[:, 3:]


@torch.inference_mode()
def test_taehvs_published_decoder_is_loaded(tmp_path: Path):
    save_file(taew2_1(), tmp_path / "taew2_1.safetensors")
    stream = DecoderStream(weights.load_taehv(tmp_path / "taew2_1.safetensors"))
    latents = torch.randn(2, 3, 16, 2, 3)
    found = torch.cat([stream.decode(latents[:, :1]), stream.decode(latents[:, 1:])], 1)
    assert found.shape == (2, 9, 3, 16, 24)
    torch.testing.assert_close(found, taehv(taew2_1(), latents), atol=1e-5, rtol=0)


def test_a_decoder_of_another_size_is_named(tmp_path: Path):
    other = taew2_1()
    other["decoder.22.weight"] = torch.zeros(12, 64, 3, 3)
    save_file(other, tmp_path / "taew2_2.safetensors")
    with pytest.raises(ValueError, match=r"taew2_2.* tensor 22.weight is \(12, 64, 3, 3\); the model's is \(3,"):
        weights.load_taehv(tmp_path / "taew2_2.safetensors")
