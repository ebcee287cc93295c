"""umT5 as diffusers' WanPipeline asks it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_umt5
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from relic.pretrained import text

CAPTIONS = ["a room", "", "  a\n room  &amp;amp; rooms &lt; 12 ", "a room called walk-1 " * 9, "unheard of"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_umt5.write(tmp_path_factory.mktemp("umt5"))


def diffusers(encoder: text.TextEncoder, captions: list[str], length: int) -> torch.Tensor:
    pipeline = SimpleNamespace(tokenizer=encoder.tokenizer, text_encoder=encoder.model)
    with torch.inference_mode():
        return WanPipeline._get_t5_prompt_embeds(pipeline, captions, max_sequence_length=length, device="cpu")


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_caption_is_embedded_bit_for_bit_as_diffusers_does(folder, caption, dtype):
    encoder = text.load(folder, "cpu", dtype)
    assert torch.equal(encoder.embed([caption], 24), diffusers(encoder, [caption], 24))


def test_captions_together_are_embedded_as_diffusers_does(folder):
    encoder = text.load(folder, "cpu", torch.float32)
    found = encoder.embed(CAPTIONS)
    assert found.shape == (5, 512, tiny_umt5.WIDTH)
    torch.testing.assert_close(found, diffusers(encoder, CAPTIONS, 512), atol=1e-6, rtol=0)


def test_a_captions_tokens_are_kept_and_its_end(folder):
    encoder = text.load(folder, "cpu")
    assert [len(encoder.tokens_of(caption, 24)) for caption in ("", "a room", CAPTIONS[3])] == [1, 3, 24]
    assert not encoder.embed(["a room"], 24)[0, 3:].any()


def test_one_folder_may_hold_both(folder, tmp_path):
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(folder / name, tmp_path, dirs_exist_ok=True)
    one, two = (text.load(place, "cpu").embed(["a room"], 8) for place in (tmp_path, folder))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "file"), [("tokenizer", "tokenizer_config.json"), ("text_encoder", "config.json")])
def test_a_folder_without_an_encoder_is_refused(folder, tmp_path, name, file):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name / file).unlink()
    with pytest.raises(ValueError, match=f"has no {file}; a text encoder's folder has umT5 and its tokenizer"):
        text.load(tmp_path, "cpu")


def test_a_missing_tensor_is_refused_not_drawn(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path, name = tmp_path / "text_encoder" / "model.safetensors", "encoder.final_layer_norm.weight"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"tensor {name} is missing"):
        text.load(tmp_path, "cpu")
