"""Wan-2.1's autoencoder, against diffusers' own `encode` and `decode` of a narrow random one."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from einops import rearrange
from torch import Tensor
from vaes import wan_vae

from relic.model.codec import DecoderStream, decoder
from relic.model.config import TAEHV
from relic.pretrained import vae
from relic.pretrained.codecs import VAE_FILE
from relic.pretrained.vae import WanCodec

FRAMES = 21  # 6 latents


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    return WanCodec(wan_vae())


def frames(seed: int = 0) -> Tensor:
    return torch.rand(2, FRAMES, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, 6, 16, 2, 3, generator=torch.Generator().manual_seed(seed))


def kept_bytes(kept: dict) -> int:
    """What a stream holds between calls; storage, not the views on it."""
    return sum(x.untyped_storage().nbytes() for x in kept.values() if isinstance(x, Tensor))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_encoding_is_the_normalised_mode_of_diffusers(codec):
    own = wan_vae()
    mode = own.encode(rearrange(frames() * 2 - 1, "b t c h w -> b c t h w")).latent_dist.mode()
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (own.config.latents_mean, own.config.latents_std))
    close(codec.encode(frames()), rearrange((mode - mean) / std, "b c t h w -> b t c h w"))


@torch.inference_mode()
def test_decoding_is_that_of_diffusers_in_0_to_1(codec):
    own = wan_vae()
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (own.config.latents_mean, own.config.latents_std))
    pixels = own.decode(rearrange(latents(), "b t c h w -> b c t h w") * std + mean).sample
    close(codec.decode(latents()), rearrange((pixels + 1) / 2, "b c t h w -> b t c h w"))


@pytest.mark.parametrize("piece", [1, 2, 3])
@torch.inference_mode()
def test_a_stream_in_pieces_is_the_whole(codec, piece):
    coding, decoding = codec.encoder_stream(), codec.decoder_stream()
    first = 1 + 4 * (piece - 1)
    cuts = [first] + [4 * piece] * (6 // piece - 1)
    close(torch.cat([coding.encode(part) for part in frames().split(cuts, 1)], 1), codec.encode(frames()))
    close(torch.cat([decoding.decode(part) for part in latents().split(piece, 1)], 1), codec.decode(latents()))


@torch.inference_mode()
def test_streams_that_take_turns_do_not_disturb_one_another(codec: WanCodec) -> None:
    walks = [codec.decoder_stream(), codec.decoder_stream()]
    shown: list[list[Tensor]] = [[], []]
    for at in range(6):
        for walk, stream in enumerate(walks):
            shown[walk].append(stream.decode(latents(walk)[:, at : at + 1]))
        codec.encode(frames())
    for walk in (0, 1):
        close(torch.cat(shown[walk], 1), codec.decode(latents(walk)))


def test_a_stream_keeps_as_much_after_many_calls_as_after_few_and_no_graph(codec):
    coding, decoding = codec.encoder_stream(), codec.decoder_stream()
    coding.encode(frames()[:, :1])
    kept = []
    for _ in range(5):
        coding.encode(frames()[:, 1:9])
        assert not decoding.decode(latents()[:, :2]).requires_grad
        kept.append((kept_bytes(coding.features), kept_bytes(decoding.features)))
    assert kept[1:] == kept[:1] * 4


def test_the_published_size_makes_317_frames_of_480x832_80_latents_and_keeps_what_is_documented():
    with torch.device("meta"):
        codec, taehv = WanCodec(AutoencoderKLWan()), DecoderStream(decoder(TAEHV))
        coding, decoding = codec.encoder_stream(), codec.decoder_stream()
        encoded = coding.encode(torch.empty(1, 317, 3, 480, 832))
        assert encoded.shape == (1, 80, 16, 60, 104)
        assert decoding.decode(encoded).shape == (1, 317, 3, 480, 832)
        taehv.decode(encoded[:, :4])
    kept = [kept_bytes(x) / 2**30 for x in (coding.features, decoding.features, taehv.memories)]
    assert kept == pytest.approx([2.1, 3.5, 0.125], abs=0.05)


@torch.inference_mode()
def test_a_narrow_one_takes_317_frames(codec):
    encoded = codec.encode(torch.rand(1, 317, 3, 16, 24))
    assert encoded.shape == (1, 80, 16, 2, 3)
    assert codec.decode(encoded).shape == (1, 317, 3, 16, 24)


def test_videos_and_pieces_of_the_wrong_length_are_refused(codec):
    with pytest.raises(ValueError, match="12 frames of 16x24"):
        codec.encode(frames()[:, :12])
    stream = codec.encoder_stream()
    with pytest.raises(ValueError, match="4 frames; a video's first piece has 4n"):
        stream.encode(frames()[:, :4])
    stream.encode(frames()[:, :1])
    with pytest.raises(ValueError, match=r"5 frames; .* every other has 4n"):
        stream.encode(frames()[:, 1:6])


@torch.inference_mode()
def test_a_diffusers_folder_is_loaded(tmp_path, codec):
    wan_vae().save_pretrained(tmp_path)
    loaded = vae.load(tmp_path / VAE_FILE)
    assert torch.equal(loaded.encode(frames()), codec.encode(frames()))
    assert torch.equal(loaded.decode(latents()), codec.decode(latents()))


def test_a_folder_of_something_else_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"holds no diffusion_pytorch_model.safetensors; a diffusers VAE's folder"):
        vae.load(tmp_path / VAE_FILE)
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], patch_size=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds Wan-2\.2's VAE"):
        vae.load(tmp_path / VAE_FILE)
