"""The small video codec."""

import pytest
import torch

from relic.model import config
from relic.model.codec import Codec

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


def test_the_decoder_has_taehvs_layout():
    published = Codec(config.Codec(decoder_widths=(256, 128, 64, 64))).decoder.state_dict()
    assert published["1.weight"].shape == (256, 16, 3, 3)
    assert published["7.conv.weight"].shape == (256, 256, 1, 1)
    assert published["13.conv.weight"].shape == (256, 128, 1, 1)
    assert published["19.conv.weight"].shape == (128, 64, 1, 1)
    assert published["22.weight"].shape == (3, 64, 3, 3)
