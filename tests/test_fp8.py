"""Linear layers in FP8: how far rounding may go, and that either way of computing gives the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CFG, conditions, latents, transformer
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.store import FP8_LARGEST
from relic.model import fp8, weights
from relic.model.precision import autocast
from relic.model.transformer import Transformer

CPU = torch.device("cpu")
cpu_multiplies = pytest.mark.skipif(
    torch.__version__.startswith("2.11."), reason="torch 2.11 scales by rows on GPUs only"
)


def velocity(model: Transformer, device: str = "cpu") -> Tensor:
    times = torch.full((1, 4), 625.0, device=device)
    with torch.inference_mode(), autocast(device):
        return model(latents(4).to(device), times, conditions(4).to(device))[0].float().cpu()


def quantised() -> Transformer:
    model = transformer()
    fp8.quantise(model)
    return model


def cosine(a: Tensor, b: Tensor) -> float:
    return functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.fixture
def matrix() -> Tensor:
    """Rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 48, generator=generator) * torch.logspace(-6, 6, 64)[:, None]


def test_an_entry_is_rounded_by_at_most_a_16th_of_itself_whatever_its_rows_size(matrix: Tensor) -> None:
    codes, scale = fp8.to_fp8(matrix)
    even = matrix.abs().amax(1, keepdim=True) / 448 / 1024  # half of the even steps near 0
    assert ((codes.float() * scale - matrix).abs() <= (matrix.abs() / 16).maximum(even)).all()


def test_the_largest_entry_of_a_row_is_exact_and_rounding_twice_is_rounding_once(matrix: Tensor) -> None:
    codes, scale = fp8.to_fp8(matrix)
    largest = matrix.abs().argmax(1, keepdim=True)
    torch.testing.assert_close((codes.float() * scale).gather(1, largest), matrix.gather(1, largest), rtol=1e-6, atol=0)
    again, scale_again = fp8.to_fp8(codes.float() * scale)
    assert torch.equal(again.float(), codes.float())
    torch.testing.assert_close(scale_again, scale)


def test_a_row_of_zeros_stays_one_and_no_number_is_lost() -> None:
    codes, scale = fp8.to_fp8(torch.tensor([[0.0, 0.0], [1.0, -3.0]]))
    assert (codes.float() * scale)[0].tolist() == [0.0, 0.0]
    assert codes.float().isfinite().all()
    assert (scale > 0).all()


def test_only_the_blocks_linears_are_rounded() -> None:
    model = quantised()
    rounded = {name for name, value in model.state_dict().items() if value.dtype == torch.float8_e4m3fn}
    layers = [f"{attention}.{to}" for attention in ("attention", "cross_attention") for to in ("to_q", "to_k", "to_v")]
    layers += ["attention.to_out", "cross_attention.to_out", "ffn.0", "ffn.2"]
    assert rounded == {f"blocks.{block}.{layer}.weight" for block in range(CFG.layers) for layer in layers}


def test_the_rounded_model_computes_nearly_what_the_model_does() -> None:
    model, wanted = quantised(), velocity(transformer())
    assert fp8.make_ready(model, CPU).startswith("FP8 weights in ")
    assert cosine(velocity(model), wanted) > 0.999


@cpu_multiplies
def test_a_model_that_multiplies_in_fp8_throughout_is_near_too() -> None:
    assert cosine(velocity(quantised()), velocity(transformer())) > 0.999


def test_on_a_cpu_the_weights_are_multiplied_out_once() -> None:
    model = quantised()
    stored = model.get_submodule("blocks.1.ffn.0")
    fp8.make_ready(model, CPU)
    plain = model.get_submodule("blocks.1.ffn.0")
    assert isinstance(plain, nn.Linear)
    assert isinstance(stored, fp8.Fp8Linear)
    assert torch.equal(plain.weight, (stored.weight.float() * stored.scale).to(plain.weight.dtype))


@cpu_multiplies
def test_both_ways_of_computing_agree() -> None:
    layer = fp8.Fp8Linear(nn.Linear(48, 64))
    x = fp8.to_fp8(torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)))[0].float()
    x[..., 0] = FP8_LARGEST  # so that the tokens' own scales are 1 and round nothing
    wanted = layer.multiplied_out(torch.float32)(x)
    torch.testing.assert_close(layer(x).float(), wanted, rtol=2**-7, atol=2**-7 * wanted.abs().max().item())
    assert layer(x).dtype == torch.bfloat16


def test_the_file_gives_back_every_number(tmp_path: Path) -> None:
    model = quantised()
    weights.save(model, tmp_path)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[n].view(torch.uint8), v.view(torch.uint8)) for n, v in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_multiplies_in_fp8_and_agrees() -> None:
    device, model = torch.device("cuda"), quantised().cuda()
    if torch.cuda.get_device_capability() < fp8.FIRST_CAPABILITY:
        pytest.skip("this GPU has no FP8")
    assert fp8.make_ready(model, device) == "FP8"
    assert cosine(velocity(model, "cuda"), velocity(transformer())) > 0.998
