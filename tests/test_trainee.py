"""A model in training: what the mesh changes of how it computes changes nothing of what it computes."""

import gc
from dataclasses import replace

import pytest
import ranks
import torch
from tiny_models import CFG, conditions, latents, transformer

from relic.model import fused
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.parallel.mesh import Mesh
from relic.train import trainee
from relic.train.config import Optimizer

ADAMW = Optimizer(learning_rate=1e-3, warmup=0)


def gradients(model: torch.nn.Module, device: str = "cpu") -> dict[str, torch.Tensor]:
    noisy, given = latents(4, batch=2).to(device), conditions(4, batch=2).to(device)
    velocity, _ = model(noisy, torch.full((2, 4), 500.0, device=device), given)
    velocity.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_blocks_that_are_computed_again_give_the_same_gradients():
    plain, again = transformer(), trainee.spread(transformer(), Mesh(Parallel(checkpointing=True), device="cpu"))
    found = gradients(again)
    assert all(torch.equal(gradient, found[name]) for name, gradient in gradients(plain).items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_fused_functions_give_the_same_gradients():
    found = gradients(transformer().cuda(), "cuda")
    plain = {(module, name): getattr(module, name) for module, name in fused.PLACES}
    fused.use()
    again = gradients(transformer().cuda(), "cuda")
    for (module, name), function in plain.items():
        assert getattr(module, name) is not function
        setattr(module, name, function)
    for name, gradient in found.items():
        assert (again[name] - gradient).norm() < 1e-2 * gradient.norm() + 1e-7, name  # bfloat16


def test_an_average_is_a_model_of_its_own():
    made = trainee.trainee("model", transformer(), ADAMW, Mesh(Parallel(checkpointing=True), device="cpu"), ema=0.5)
    with torch.no_grad():
        made.module.head.bias.add_(1.0)
        made.module.blocks[0].modulation.add_(1.0)
    noisy, given, times = latents(2), conditions(2), torch.full((1, 2), 500.0)
    assert torch.equal(made.average(noisy, times, given)[0], transformer()(noisy, times, given)[0])


@pytest.mark.parametrize(("optimizer", "said"), [(replace(ADAMW, muon=True), "muon is on and zero is 2")])
def test_muon_is_not_cut(optimizer: Optimizer, said: str):
    mesh = Mesh(Parallel(zero=2), world=2, device="cpu")
    with pytest.raises(ValueError, match=said):
        trainee.trainee("model", transformer(), optimizer, mesh)


def test_adapters_are_not_cut():
    module = transformer()
    module.head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"lora.rank is above 0 and zero is 1"):
        trainee.trainee("model", module, ADAMW, Mesh(Parallel(zero=1), world=2, device="cpu"))


def test_heads_that_cannot_be_shared_are_refused():
    mesh = Mesh(device="cpu")
    mesh.sequence = type("Three", (), {"size": 3})()
    with pytest.raises(ValueError, match="2 heads cannot be shared by 3 processes"):
        trainee.spread(transformer(CFG), mesh)


def released(zero: int) -> tuple[int, int]:
    """Bytes of all tensors before and after a trainee is released."""
    mesh = meshes.joined(Parallel(zero=zero))
    module = trainee.made(CFG, mesh, None)
    first = trainee.trainee("first", module, ADAMW, mesh, ema=0.5)
    loss = first.model(latents(2), torch.full((1, 2), 500.0), conditions(2))[0].square().mean()
    loss.backward()
    first.step(loss.detach(), 1e-3, 0)
    held = living()
    del loss, module
    first.release()
    del first
    return held, living()


def living() -> int:
    gc.collect()
    found = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gc.get_objects() if torch.is_tensor(x)
    }
    return sum(found.values())


@pytest.mark.parametrize("zero", [1, 3])
def test_a_cut_model_that_is_released_leaves_its_memory(zero: int):
    weights = 4 * sum(p.numel() for p in transformer().parameters())
    for held, left in ranks.run(released, 2, zero):
        assert held - left > 1.5 * weights  # what a process has: weights, half of a moment's two, of an average
