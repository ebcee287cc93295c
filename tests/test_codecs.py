"""Which codec a folder holds."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from vaes import taew2_1, wan_vae

from relic.model import weights
from relic.model.codec import Codec, DecoderStream
from relic.pretrained import codecs
from relic.pretrained.vae import WanCodec

TINY = weights.SHIPPED / "tiny" / "codec"


def test_only_a_folder_of_diffusers_needs_diffusers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    script = (
        "import sys; sys.modules['diffusers'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path; import relic.serve.engine, relic.evaluate.report, relic.data.shard\n"
        "from relic.pretrained import codecs\n"
        f"assert type(codecs.load(Path({str(TINY)!r}))).__name__ == 'Codec'\n"
        f"codecs.load(Path({str(tmp_path)!r}))"
    )
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert failed.stderr.endswith("holds Wan's VAE, which needs diffusers: pip install 'relic[wan]'\n")


@torch.inference_mode()
def test_wans_encoder_goes_with_taehvs_decoder_when_its_file_lies_beside(tmp_path):
    wan_vae().save_pretrained(tmp_path)
    assert codecs.files(tmp_path) == ["config.json", "diffusion_pytorch_model.safetensors"]
    save_file(taew2_1(), tmp_path / "taew2_1.safetensors")
    codec, frames, latents = codecs.load(tmp_path), torch.rand(1, 9, 3, 16, 24), torch.randn(1, 3, 16, 2, 3)
    taehv = DecoderStream(weights.load_taehv(tmp_path / "taew2_1.safetensors"))
    assert torch.equal(codec.encode(frames), WanCodec(wan_vae()).encode(frames))
    assert torch.equal(codec.decode(latents), taehv.decode(latents))
    assert codecs.files(tmp_path)[2:] == ["taew2_1.safetensors"]


def test_relics_own_files_are_its_weights_and_config(tmp_path):
    weights.save(Codec(weights.load_codec(TINY).cfg), tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert codecs.files(tmp_path) == ["config.json", "model.safetensors"]


def test_a_folder_that_holds_no_codec_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json; a codec is a folder of relic's or of diffusers'"):
        codecs.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="holds diffusers' AutoencoderKL; of diffusers' classes AutoencoderKLWan is"):
        codecs.load(tmp_path)
