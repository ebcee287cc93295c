"""Replayed back-propagation equals plain back-propagation, in one chunk's memory."""

import weakref

import pytest
import torch
from tiny_models import conditions, latents, transformer

from relic.generate.config import Rollout as Config
from relic.generate.rollout import Rollout, play
from relic.memory.config import Memory
from relic.model import flow
from relic.model.transformer import Transformer
from relic.train import replay

CFG = Config(chunk=2, memory=Memory(window=2, capacity=4))  # the memory is full after two chunks
MODEL = transformer()


def started(model: Transformer) -> Rollout:
    return Rollout(model, CFG, image_latent=latents(1, batch=2)[:, 0], text=conditions(1, batch=2).text, seed=3)


def replayed(model: Transformer, num_latents: int, exit_step: int = 1) -> tuple[Rollout, Rollout]:
    """A walk and its replay, whose gradients lie in the model; the loss is the sum of the latents' squares."""
    walk, actions = started(model), conditions(num_latents, batch=2).actions
    made, passes = play(walk, actions, num_latents=num_latents, exit_step=exit_step)
    again = started(model)
    replay.backward(again, actions, made, passes, 2 * made)
    return walk, again


@pytest.fixture
def _float64(monkeypatch):
    """Everything in double precision, the memory too."""
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)
    monkeypatch.setattr("relic.memory.cache.DTYPES", {"fp8": torch.float64})
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("exit_step", range(4))
def test_replay_gradient_equals_full_backprop(exit_step: int, monkeypatch):
    model = transformer().double()
    replayed(model, 8, exit_step)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    # one graph over the whole video: the serving step itself with autograd, what goes in at its last pass detached
    model.zero_grad()
    add_noise = flow.add_noise
    monkeypatch.setattr(flow, "add_noise", lambda clean, *rest: add_noise(clean.detach(), *rest))
    monkeypatch.setattr(Rollout, "step", Rollout.step.__wrapped__)  # type: ignore[attr-defined]
    made, _ = play(started(model), conditions(8, batch=2).actions, num_latents=8, exit_step=exit_step)
    made.square().sum().backward()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (found[name] - parameter.grad).abs().max() < 1e-9 * largest, name


def test_the_replay_sees_the_memory_that_the_walk_saw():
    walk, again = replayed(MODEL, 8)
    assert replay.same_memory(walk, again)
    again.memory.storage.view(torch.uint8)[:, :, :, 1] ^= 1
    assert not replay.same_memory(walk, again)


def test_the_replayed_pass_gives_the_same_latents():
    actions = conditions(8, batch=2).actions
    made, passes = play(started(MODEL), actions, num_latents=8)
    again = started(MODEL)
    for index, last in enumerate(passes):
        chunk, done = slice(2 * index, 2 * index + 2), again.actions.shape[1]
        torch.testing.assert_close(again.replay(actions[:, done : done + again.num_actions], last), made[:, chunk])
        again.remember(made[:, chunk])


def test_saved_tensors_do_not_grow_with_the_number_of_chunks():
    peaks = []
    for num_latents in (8, 16, 32):
        alive, peak = 0, 0

        def keep(x: torch.Tensor):
            nonlocal alive, peak
            held, size = x.clone(), x.numel() * x.element_size()
            alive, peak = alive + size, max(peak, alive + size)

            def freed() -> None:
                nonlocal alive
                alive -= size

            weakref.finalize(held, freed)
            return held

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
            replayed(MODEL, num_latents)
        peaks.append(peak)
    assert peaks[0] == peaks[1] == peaks[2] > 0
