"""Replayed back-propagation equals plain back-propagation, in one chunk's memory."""

import pytest
import torch
from measure import Graph
from tiny_models import conditions, latents, transformer

from relic.generate.config import Rollout as Config
from relic.generate.rollout import Rollout, play
from relic.memory import store
from relic.memory.config import Memory
from relic.model import flow
from relic.model.transformer import Transformer
from relic.train import replay

MEMORIES = {
    "compressed": Memory(window=2, capacity=6, dtype="fp32"),
    "weighed": Memory(window=2, capacity=6, dtype="fp32", weigh_pooled=True),
    "window": Memory(policy="window", window=2, capacity=6, dtype="fp32"),
    "landmarks": Memory(policy="relic_landmarks", window=2, capacity=6, landmarks=2, retrieved=1, dtype="fp32"),
    "encoded": Memory(window=2, capacity=6, pooled="latents", dtype="fp32"),
    "fp8": Memory(window=2, capacity=6),
}
CFG = Config(chunk=2, memory=MEMORIES["fp8"])
MODEL = transformer()
Gradients = dict[str, torch.Tensor]


def started(model: Transformer, cfg: Config = CFG) -> Rollout:
    return Rollout(model, cfg, image_latent=latents(1, batch=2)[:, 0], text=conditions(1, batch=2).text, seed=3)


def replayed(model: Transformer, num_latents: int, exit_step: int = 1, cfg: Config = CFG) -> Gradients:
    """The gradients of a walk's replay; the loss is the sum of the latents' squares."""
    model.zero_grad()
    walk, actions = started(model, cfg), conditions(num_latents, batch=2).actions
    made, passes = play(walk, actions, num_latents=num_latents, exit_step=exit_step)
    replay.backward(started(model, cfg), actions, made, passes, 2 * made)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def back_propagated(model: Transformer, num_latents: int, exit_step: int, cfg: Config) -> Gradients:
    """The same by one graph over the whole video: the serving step itself with autograd, what goes in at a chunk's last
    pass detached."""
    model.zero_grad()
    add_noise = flow.add_noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "add_noise", lambda clean, *rest: add_noise(clean.detach(), *rest))
        for name in ("step", "make", "keep"):
            patch.setattr(Rollout, name, getattr(Rollout, name).__wrapped__)
        walk, actions = started(model, cfg), conditions(num_latents, batch=2).actions
        made, _ = play(walk, actions, num_latents=num_latents, exit_step=exit_step)
    made.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(found: Gradients, expected: Gradients) -> float:
    """The largest difference of a parameter's gradients over the largest of its entries."""
    assert found.keys() == expected.keys()
    floor = 1e-8 * max(x.abs().max() for x in expected.values())  # keys' biases have no gradient but rounding
    return max(float((found[n] - x).abs().max() / x.abs().max().clamp(min=floor)) for n, x in expected.items())


@pytest.fixture
def _float64(monkeypatch):
    """Everything in double precision; memory in float32 too, in FP8 not."""
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)
    monkeypatch.setitem(store.DTYPES, "fp32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("exit_step", range(4))
@pytest.mark.parametrize("context", ["clean", "noisy"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_replay_gradient_equals_full_backprop(memory: str, context: str, exit_step: int):
    model, cfg = transformer().double(), Config(chunk=2, memory=MEMORIES[memory], context=context)
    given = (model, 10, exit_step, cfg)
    assert furthest(replayed(*given), back_propagated(*given)) < 1e-9


@pytest.mark.parametrize("memory", MEMORIES)
def test_in_single_precision_they_agree_to_its_rounding(memory: str):
    given = (MODEL, 10, 2, Config(chunk=2, memory=MEMORIES[memory]))
    assert furthest(replayed(*given), back_propagated(*given)) < 1e-4


@pytest.mark.usefixtures("_float64")
def test_another_memory_would_give_another_gradient():
    given = (transformer().double(), 10, 1)
    compressed, window = (Config(chunk=2, memory=MEMORIES[name]) for name in ("compressed", "window"))
    assert furthest(replayed(*given, compressed), back_propagated(*given, window)) > 1e-3


def test_a_replay_that_sees_another_memory_stops():
    actions = conditions(8, batch=2).actions
    made, passes = play(started(MODEL), actions, num_latents=8)
    other = made.clone()
    other[:, 3] += 0.01
    with pytest.raises(AssertionError, match="replay of chunk 2 saw another context"):
        replay.backward(started(MODEL), actions, other, passes, made)


def test_the_replayed_pass_gives_the_same_latents():
    actions = conditions(8, batch=2).actions
    made, passes = play(started(MODEL), actions, num_latents=8)
    again = started(MODEL)
    for index, last in enumerate(passes):
        chunk, done = slice(2 * index, 2 * index + 2), again.num_frames
        torch.testing.assert_close(again.replay(actions[:, done : done + again.num_actions], last), made[:, chunk])
        again.remember(made[:, chunk], last)


def test_saved_tensors_do_not_grow_with_the_number_of_chunks():
    peaks = []
    for num_latents in (24, 48, 72):  # the schedule has come round once by the first
        graph = Graph(MODEL)
        with graph:
            replayed(MODEL, num_latents)
        peaks.append(graph.most)
    assert peaks[0] == peaks[1] == peaks[2] > 0
