"""DeepSpeed's ZeRO (arXiv 1910.02054): a model's moments (1), gradients (2) and weights (3) cut among all processes.

A model stays a plain module. Its engine is called in its place, and that is all a training loop knows of it: `backward`
of what a call returns collects gradients, over as many backwards as there are, and `step` uses them. ZeRO 1 sends them
then, once. ZeRO 2 and 3 keep no whole gradients and send them at every backward, replayed chunk by chunk as well.

Weights and moments are float32; what multiplies is autocast. Under ZeRO 3 every process owns an equal piece of each
flattened tensor, and a block is whole while it works. An average is cut so under ZeRO 1 and 2 too, a teacher under 3
(`built`, `fill`, `frozen`).

`Piece` says which run of which tensor a process owns, so that a checkpoint does not depend on the cut.
"""

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from relic.parallel.mesh import Mesh

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
import deepspeed
from deepspeed.utils import logger

logger.setLevel(logging.ERROR)
if os.environ["DS_ACCELERATOR"] == "cpu":  # else it compiles, for minutes, what only inference on CPUs would use
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a weight, beside the count of its steps


class Piece(NamedTuple):
    """What a process owns of a tensor: `data` [n] from place `start` of the flattened tensor on; live."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    start: int
    data: Tensor


class Sharded:
    """A model that is trained by AdamW on all processes. `model` is called in its place."""

    def __init__(
        self, module: nn.Module, groups: list[dict[str, Any]], mesh: Mesh, *,
        betas: tuple[float, float], clip_norm: float, computed_in: torch.dtype | None,
    ):  # fmt: skip
        """module: made under `built` for ZeRO 3, else whole on its device; groups: of AdamW, with their weight decay;
        computed_in: what autocast multiplies in, None for no autocast."""
        self.module, self.stage = module, mesh.cfg.zero
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        cfg = settings(module, mesh, stage=self.stage, clip_norm=clip_norm, computed_in=computed_in)
        self.model: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=cfg)[0]
        self.zero = self.model.optimizer
        self.state: dict[int, dict[str, Tensor]] = {}  # of AdamW, by ZeRO's flat groups of weights
        for index, flat in enumerate(self._flat()):
            zeros = {name: torch.zeros_like(flat, requires_grad=False) for name in MOMENTS}
            self.state[index] = {"step": torch.zeros((), dtype=torch.float32, device=flat.device), **zeros}
            self.zero.optimizer.state[flat] = self.state[index]

    def step(self, learning_rate: float) -> float:
        """One step down the gradients that came together; returns their norm before it was clipped."""
        for group in self.zero.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """("weights", piece) of every tensor's weights and ("exp_avg", piece) … of its state; a step's count is whole
        on all processes."""
        for name, parameter in parameters(self.module):
            if self.stage == 3:
                index, at, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
                shape, start = tuple(parameter.ds_shape), size * dist.get_rank()
                size = max(0, min(size, parameter.ds_numel - start))
            elif (mapped := parameter._hp_mapping) is not None:
                index, at, size = (
                    mapped.param_group_index,
                    mapped.hp_fragment_address.start,
                    mapped.lp_fragment_address.numel,
                )
                shape, start = tuple(parameter.shape), mapped.lp_fragment_address.start
            else:
                index, at, size, shape, start = self._group_of(parameter), 0, 0, tuple(parameter.shape), 0
            yield "weights", Piece(name, shape, start, self._flat()[index].detach().narrow(0, at, size))
            for moment in MOMENTS:
                yield moment, Piece(name, shape, start, self.state[index][moment].narrow(0, at, size))
            yield "step", Piece(name, (), 0, self.state[index]["step"].view(1))

    def restored(self) -> None:
        """To be called when the pieces have been written to: the module's weights follow."""
        forget(self.module)
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        for _, parameter in parameters(self.module):
            index, at, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
            parameter.ds_tensor.data.copy_(self._flat()[index].narrow(0, at, size))

    def release(self) -> None:
        """Frees all of it."""
        for flat in self._flat():
            flat.data = flat.data[:0].clone()
        self.state.clear()
        self.zero.optimizer.state.clear()
        release(self.model)

    def _flat(self) -> list[Tensor]:
        """ZeRO's float32 weights of this process, a tensor a group."""
        return self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups

    def _group_of(self, parameter: nn.Parameter) -> int:
        return next(i for i, group in enumerate(self.zero.bit16_groups) if any(p is parameter for p in group))


def parameters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name; with what DeepSpeed has hung on them."""
    yield from module.named_parameters()


def built(mesh: Mesh) -> AbstractContextManager[Any]:
    """Modules made inside have their weights cut as soon as they have them; `fill` them afterwards."""
    return deepspeed.zero.Init(config_dict_or_path=settings(None, mesh, stage=3))


def fill(module: nn.Module, read: Callable[[str], Tensor]) -> None:
    """The weights of a module made under `built`, of whole tensors that `read` gives by name."""
    for piece in owned(module):
        piece.data.copy_(read(piece.name).flatten()[piece.start : piece.start + len(piece.data)])


def frozen(module: nn.Module, mesh: Mesh, computed_in: torch.dtype | None) -> Any:
    """A module made under `built` that is only computed with, block by block; called in the module's place."""
    cfg = settings(module, mesh, stage=3, computed_in=computed_in)
    return deepspeed.initialize(model=module.requires_grad_(False).eval(), config=cfg)[0]


def owned(module: nn.Module) -> Iterator[Piece]:
    """This process's pieces of a module that was made under `built`."""
    for name, parameter in parameters(module):
        start = parameter.ds_tensor.numel() * dist.get_rank()
        own = max(0, min(parameter.ds_tensor.numel(), parameter.ds_numel - start))
        yield Piece(name, tuple(parameter.ds_shape), start, parameter.ds_tensor.data[:own])


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole tensor's, cut or not."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def own_of(parameter: nn.Parameter, like: Piece) -> Tensor:
    """A parameter's numbers at the places of a piece that `owned` gives of the same tensor."""
    own = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.detach().flatten()[like.start :]
    return own[: len(like.data)]


def whole(module: nn.Module, mesh: Mesh) -> dict[str, Tensor]:
    """A module's whole weights by name in rank 0's host memory, nothing elsewhere. All processes call it."""
    state = {}
    for name, parameter in parameters(module):
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if mesh.is_first:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


def release(engine: Any) -> None:
    """Frees what an engine's module holds: its hooks refer to it in circles."""
    for _, parameter in parameters(engine.module):
        for place in (parameter, parameter.ds_tensor) if hasattr(parameter, "ds_tensor") else (parameter,):
            place.data = place.data.flatten()[:0].clone()
    engine.destroy()


def forget(module: nn.Module) -> None:
    """Gives up whole weights that are there, for this process's pieces have been written to."""
    for _, parameter in parameters(module):
        if hasattr(parameter, "ds_id") and parameter.ds_status.name == "AVAILABLE":
            parameter.partition()


def settings(
    module: nn.Module | None, mesh: Mesh, *, stage: int, clip_norm: float = 0.0, computed_in: torch.dtype | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration. Of a module that is cut, about two blocks are whole at a time."""
    cuda = mesh.device.startswith("cuda")
    live = 2 * max((sum(map(numel, child.parameters())) for child in blocks(module)), default=0)
    zero: dict[str, Any] = {
        "stage": stage, "overlap_comm": cuda and stage > 1, "reduce_bucket_size": mesh.cfg.bucket,
        "allgather_bucket_size": mesh.cfg.bucket, "stage3_prefetch_bucket_size": mesh.cfg.bucket,
        "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": live, "stage3_max_reuse_distance": live,
    }  # fmt: skip
    if mesh.cfg.offload != "none" and stage:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
        if mesh.cfg.offload == "all" and stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": cuda}
    autocast = {"enabled": computed_in is not None, "dtype": str(computed_in or torch.bfloat16).removeprefix("torch.")}
    return {
        "train_micro_batch_size_per_gpu": 1, "managed_gradient_accumulation": False, "gradient_clipping": clip_norm,
        "zero_optimization": zero, "torch_autocast": autocast, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9,
    }  # fmt: skip


def blocks(module: nn.Module | None) -> Iterable[nn.Module]:
    """The members of a module's lists."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)] if module else []
    return [member for found in lists for member in found]


def numel(parameter: nn.Parameter) -> int:
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
