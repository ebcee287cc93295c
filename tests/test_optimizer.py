"""The optimiser's parts."""

import pytest
import torch
from tiny_models import transformer

from relic.train import optimizer
from relic.train.config import Optimizer

CFG = Optimizer(learning_rate=1.0, warmup=10, final_share=0.1)


def test_the_rate_rises_then_falls_to_its_share():
    rates = [optimizer.rate(CFG, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(0.1)


def test_vectors_are_not_decayed():
    groups = optimizer.Optimizers(torch.nn.Linear(3, 2), Optimizer()).parts[0].param_groups
    assert [(p.ndim, group["weight_decay"]) for group in groups for p in group["params"]] == [(2, 0.01), (1, 0.0)]


def test_a_loss_that_is_not_finite_stops_before_the_step():
    layer = torch.nn.Linear(1, 1)
    before, both = layer.weight.clone(), optimizer.Optimizers(layer, CFG)
    loss = layer(torch.tensor([[float("inf")]])).sum() * 0
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        optimizer.update(layer, both, loss, CFG, 1.0)
    assert torch.equal(layer.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    layer = torch.nn.Linear(1, 1)
    before, both = layer.weight.clone(), optimizer.Optimizers(layer, CFG)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), float("inf")), torch.zeros(1)
    with pytest.raises(FloatingPointError, match="the gradient norm is inf"):
        optimizer.update(layer, both, torch.tensor(1.0), CFG, 1.0)
    assert torch.equal(layer.weight, before)


def test_the_average_follows_the_weights():
    model = transformer()
    ema = optimizer.Ema(model, 0.5)
    start = model.head.weight.clone()
    torch.nn.init.constant_(model.head.weight, 3.0)
    ema.update(model, step=1000)
    torch.testing.assert_close(ema.module.head.weight, (start + 3.0) / 2)


def test_muon_takes_the_hidden_matrices_and_nothing_else():
    model = transformer()
    adamw, muon = optimizer.Optimizers(model, Optimizer(muon=True)).parts
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert {"blocks.0.ffn.0.weight", "blocks.1.attention.to_q.weight"} <= taken
    assert {"head.weight", "patch_embedding.weight", "text_table.weight", "blocks.0.modulation"} <= left
    assert len(taken) + len(left) == len(names)
