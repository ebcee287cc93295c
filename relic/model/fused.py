"""The functions of a block, and of the memory, that do little but read and write: as one kernel each, by torch.compile
(section 4.5)."""

from typing import Any

import torch

from relic.memory import store
from relic.model import attention, block, fp8, rope, transformer

PLACES = (
    (block, "modulated_norm"), (transformer, "modulated_norm"), (block, "gated"), (attention, "normed"), (rope, "turn"),
    (fp8, "to_fp8"), (store, "rounded"), (store, "multiplied"),
)  # fmt: skip


def use() -> None:
    """In this process from now on. They compute what they did, with other roundings; whole blocks would be compiled
    anew for every length of a walk, for each precision of the weights, and with a graph and without."""
    compiled: dict[str, Any] = {}
    for module, name in PLACES:
        function = getattr(module, name)
        if not hasattr(function, "_torchdynamo_orig_callable"):
            compiled[name] = compiled.get(name) or torch.compile(function, dynamic=True)
            setattr(module, name, compiled[name])
