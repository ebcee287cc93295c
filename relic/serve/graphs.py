"""A transformer's passes as CUDA graphs: one call of the driver for the thousand kernels of a pass.

A pass of a walk has fixed addresses (what it sees lies in one shared context, generate/context.py) and, for a state of
the memory's schedule, fixed shapes. So a graph is captured for every number of tokens that are seen: while the memory
fills one a chunk, then one for each place in the schedule's cycle. What a call is given is copied into the graph's own
inputs, what it gives lies in tensors that the next replay overwrites. All graphs share one pool of memory, for they run
one after the other; keys and values that are to be remembered are copied out of it, or each graph would hold its own.

From outside: `use` replaces `forward` of one model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relic.memory.masks import Segment
from relic.model.attention import KeyValue, Past
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer

Result = tuple[Tensor, list[KeyValue]]


@dataclass(frozen=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    given: list[Tensor]
    result: Result


class Replayed:
    """`forward` of a model in evaluation, for calls by the rollout. The first call of its kind runs and is captured."""

    def __init__(self, forward: Callable[..., Result]):
        self.forward, self.captured = forward, dict[tuple, Captured]()
        self.pool = torch.cuda.graph_pool_handle()
        self.kept: dict[tuple, list[KeyValue]] = {}

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        times: Tensor,
        past: list[Past] | None = None,
        segments: tuple[Segment, ...] | None = None,
        pooled: tuple[int, int, int] | None = None,
        remember: bool = False,
    ) -> Result:
        assert segments is None, "a walk has no segments"
        if pooled is not None:  # several such passes follow one another, and all their results are needed
            return self.forward(
                latents, timesteps, conditions, times=times, past=past, pooled=pooled, remember=remember
            )
        given = [latents, timesteps, conditions.actions, conditions.poses, conditions.text, times]
        seen = None if past is None else (past[0].keys.data_ptr(), past[0].keys.shape)
        key = (*(x.shape for x in given), seen, remember)
        if found := self.captured.get(key):
            for own, x in zip(found.given, given, strict=True):
                own.copy_(x)
            found.graph.replay()
            return found.result

        def call(*own: Tensor) -> Result:
            latents, timesteps, actions, poses, text, times = own
            said = Conditions(actions, poses, text, conditions.empty)
            return self.forward(latents, timesteps, said, times=times, past=past, remember=remember)

        result = call(*given)
        self.captured[key] = self.capture(call, given)
        return result

    def capture(self, call: Callable[..., Result], given: list[Tensor]) -> Captured:
        graph, own, device = torch.cuda.CUDAGraph(), [x.clone() for x in given], given[0].device
        torch.cuda.synchronize(device)
        torch.clear_autocast_cache()  # weights that were cast outside would be gone at the replay
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=self.pool):  # a thread begins with the first GPU
            velocity, key_values = call(*own)
            kept = self.keep(key_values)
        torch.clear_autocast_cache()
        return Captured(graph, own, (velocity, kept))

    def keep(self, key_values: list[KeyValue]) -> list[KeyValue]:
        """Copies in tensors that all graphs of this size share."""
        if not key_values:
            return []
        shape = key_values[0].keys.shape
        if shape not in self.kept:
            self.kept[shape] = [KeyValue(*(torch.empty_like(x) for x in pair)) for pair in key_values]
        for own, pair in zip(self.kept[shape], key_values, strict=True):
            own.keys.copy_(pair.keys)
            own.values.copy_(pair.values)
        return self.kept[shape]


def use(model: Transformer) -> None:
    """Lets a model on a GPU replay its passes."""
    model.forward = Replayed(model.forward)  # type: ignore[method-assign, assignment]
