"""What a GPU holds of a model in training, by the dials of a mesh: relic/train/trainee.py's states in closed form. No
torch."""

import math
from dataclasses import dataclass, replace
from typing import Any

from relic.model.config import Transformer
from relic.train import footprint
from relic.train.config import Machine, Optimizer
from relic.train.footprint import FLOAT, Pass

GATHERED = 2  # blocks whose cut weights are whole at a time: one at work, one on its way


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes on each GPU at the fullest moment of a stage; `samples` a group of GPUs at once."""

    stage: str
    samples: int = 1
    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    ema: float = 0
    activations: float = 0
    memory: float = 0
    codec: float = 0
    reused: float = 0  # of the activations, which the first gradients take the place of as the graph goes
    sent: float = 0  # in a step

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> float:
        return self.states + self.activations + self.memory + self.codec - self.reused


def samples_of(batch: int, machine: Machine) -> int:
    """Samples that a group of GPUs takes at once."""
    groups = machine.gpus // machine.sequence_parallel
    return min(machine.samples or batch, math.ceil(batch / groups))


def pieces(batch: int, machine: Machine) -> list[int]:
    """Samples of each piece of a group's part of a batch."""
    own = math.ceil(batch * machine.sequence_parallel / machine.gpus)
    size = samples_of(batch, machine)
    return [size] * (own // size) + [own % size] * (own % size > 0)


def trained(model: Transformer, optimizer: Optimizer, machine: Machine) -> Need:
    """The states of a model in training and of its average, as relic/train/trainee.py holds them."""
    whole, part = FLOAT * footprint.parameters(model), FLOAT * footprint.parameters(model) / machine.gpus
    on_gpu = machine.offload == "none" or not machine.cut  # the optimiser's state
    moments = footprint.moments(model, optimizer)
    buffers = (FLOAT + machine.low * (machine.low < FLOAT)) * machine.bucket  # a precision
    if not machine.cut:
        bucket = min(whole, FLOAT * machine.bucket) if machine.gpus > 1 else 0
        return Need(stage="", weights=whole, gradients=whole + bucket, optimizer=moments, ema=whole)
    states: dict[str, Any] = {
        "optimizer": moments / machine.gpus if on_gpu else 0,
        "ema": 0 if machine.offload == "all" else part,
    }
    if machine.cut < 3:  # weights, and a part of them that the optimiser moves
        gradients = whole if machine.cut == 1 else part * on_gpu
        return Need(stage="", weights=whole + part * on_gpu, gradients=gradients + buffers, **states)
    weights = 0 if machine.offload == "all" else part
    return Need(stage="", weights=weights, gradients=part * on_gpu + buffers, **states)


def frozen(model: Transformer, machine: Machine) -> float:
    """The weights of a model that is only computed with."""
    if machine.cut < 3:
        return footprint.multiplied(model, machine.low)
    return 0 if machine.offload == "all" else FLOAT * footprint.parameters(model) / machine.gpus


def backward(states: Need, model: Transformer, graph: Pass, machine: Machine, *, first: bool) -> Need:
    """With what a graph and its backward take; `first` where there are no gradients yet."""
    held, gradients = working(model, graph, machine), trained(model, Optimizer(), replace(machine, bucket=0)).gradients
    reused = min(held, gradients) if first and machine.cut < 3 else 0
    if machine.checkpointing and machine.cut < 3:
        # the copies go with the forward; then a block's graph is made at a time, and its input goes as gradients come
        inputs = graph.low * graph.batch * graph.tokens * model.width * model.layers / machine.sequence_parallel
        one, low = footprint.block(model, graph) / machine.sequence_parallel, copies(model, machine)
        fullest = max(inputs + max(one, low), gradients + one) if first else gradients + inputs + max(one, low)
        reused = gradients + inputs + one + low - fullest
    return replace(states, activations=held, reused=reused)


def working(model: Transformer, graph: Pass, machine: Machine) -> float:
    held = footprint.activations(model, graph, checkpointing=machine.checkpointing)
    return held / machine.sequence_parallel + copies(model, machine)


def copies(model: Transformer, machine: Machine) -> float:
    """The weights in the precision that they are multiplied in, and what is whole of cut ones."""
    linears = footprint.linears(model)
    in_low = machine.low * linears if machine.low < FLOAT else 0
    if machine.cut < 3:
        return in_low
    return in_low + FLOAT * GATHERED * footprint.parameters(model) / model.layers
