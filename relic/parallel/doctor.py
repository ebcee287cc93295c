"""What `relic doctor` checks in the processes of a launch: devices, versions, the all-reduce between them and their
clocks. Under torchrun every process comes here; alone, a process has nobody to compare with."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from relic.parallel.config import Doctor, Finding, Parallel
from relic.parallel.mesh import Mesh, joined

ELEMENTS = 2**24  # of the tensor that is reduced: 64 MiB in float32
REPETITIONS = 5  # of which the fastest counts
PACKAGES = ("relic", "torch", "deepspeed", "flash-attn")
DRIVER = Path("/proc/driver/nvidia/version")


def examined(cfg: Doctor, node: Sequence[Finding]) -> tuple[list[Finding], bool]:
    """The findings of all processes, `node` being this one's of its node, and whether this process says them."""
    found = [*node, *devices(cfg)]
    world, rank, local = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if world > 1:
        found = [replace(finding, where=f"{socket.gethostname()}:{rank}") for finding in found]
    try:
        mesh = joined(Parallel(timeout_s=cfg.timeout_s))
        shared = [versions(mesh), all_reduce(mesh, cfg), clocks(mesh, cfg)]
        every = mesh.said_by_all([] if local else found)  # a node's first process speaks for it
        mesh.wait()
    except (ValueError, RuntimeError) as error:  # torch.distributed raises RuntimeErrors when a process is not heard
        said = f"process {rank} of {world} does not hear the others: {str(error).splitlines()[0]}"
        return [*found, Finding(verdict="fail", name="processes", said=said)], True
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return [finding for of_one in every for finding in of_one] + shared, mesh.is_first


def devices(cfg: Doctor) -> list[Finding]:
    """A finding for each GPU, and one for their number."""
    driver = DRIVER.read_text().partition("Kernel Module")[2].split() if DRIVER.is_file() else []
    said = f"driver {driver[0]}" if driver else "no NVIDIA driver"
    number = torch.cuda.device_count()
    said = f"{number} GPUs, {os.cpu_count()} processors, {said}, CUDA {torch.version.cuda or 'none'} in torch"
    broken = bool(driver) and not number and torch.version.cuda is not None
    verdict = "fail" if number < cfg.gpus or broken else "ok" if number else "warn"
    found = [Finding(verdict=verdict, name="devices", said=f"{said}; {cfg.gpus} GPUs are needed")]
    for index in range(number):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        bfloat16 = about.major >= 8
        said = (
            f"{about.name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {cfg.gpu_free_share:.0%} are needed; "
            f"bfloat16 {'yes' if bfloat16 else 'no, which trainings need'}"
        )
        verdict = "ok" if bfloat16 and free >= cfg.gpu_free_share * total else "fail" if not bfloat16 else "warn"
        found.append(Finding(verdict=verdict, name=f"gpu {index}", said=said))
    return found


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def versions(mesh: Mesh) -> Finding:
    """Of what trainings compute with; the same in all processes, or results and messages would not fit."""
    every = mesh.said_by_all({package: version_of(package) for package in PACKAGES})
    apart = [name for name in PACKAGES if len({said[name] for said in every}) > 1]
    if not apart:
        return Finding(verdict="ok", name="versions", said=", ".join(f"{n} {v}" for n, v in every[0].items()))
    said = "; ".join(
        f"{name} is " + ", ".join(f"{said[name]} in process {rank}" for rank, said in enumerate(every))
        for name in apart
    )
    return Finding(verdict="fail", name="versions", said=f"{said}; all must have the same")


def all_reduce(mesh: Mesh, cfg: Doctor) -> Finding:
    """Bandwidth of the slowest process. The bus's is what a link carries: 2 (n - 1) / n of the algorithm's for n."""
    if mesh.world == 1:
        return Finding(verdict="ok", name="all-reduce", said="one process, nothing to reduce; torchrun starts several")
    fastest_s, sums_right = float("inf"), True
    for _ in range(REPETITIONS + 1):
        values = torch.full((ELEMENTS,), mesh.rank + 1.0, device=mesh.device)
        mesh.wait()
        began = time.perf_counter()
        dist.all_reduce(values)
        sums_right &= bool((values == mesh.world * (mesh.world + 1) / 2).all())  # waits for the device, too
        fastest_s = min(fastest_s, time.perf_counter() - began)
    every = mesh.said_by_all((fastest_s, sums_right))
    algorithm = 4 * ELEMENTS / max(seconds for seconds, _ in every) / 1e9
    bus = algorithm * 2 * (mesh.world - 1) / mesh.world
    right = all(rights for _, rights in every)
    said = (
        f"{dist.get_backend()}, {mesh.world} processes, 64 MiB: algorithm {algorithm:.2f} GB/s, bus {bus:.2f} GB/s; "
        f"{cfg.bus_gb_s:g} GB/s are needed" + ("" if right else "; and the sums are wrong")
    )
    return Finding(verdict="ok" if right and bus >= cfg.bus_gb_s else "fail", name="all-reduce", said=said)


def clocks(mesh: Mesh, cfg: Doctor, clock: Callable[[], float] = time.time) -> Finding:
    """How far apart the processes' clocks are, to the milliseconds in which they leave a barrier."""
    if mesh.world == 1:
        return Finding(verdict="ok", name="clocks", said="one process, no other clock")
    mesh.wait()
    times = mesh.said_by_all(clock())
    skew = max(times) - min(times)
    said = f"clocks are {skew:.3f} s apart; {cfg.skew_s:g} s are allowed"
    return Finding(verdict="ok" if skew <= cfg.skew_s else "fail", name="clocks", said=said)
