"""Dials of the deployment, and of the start of several processes."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from relic.mistakes import nodes_of


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a figure of the evaluation's report.json must reach."""

    metric: str  # its place there, with dots: "models.distilled.action_win_rate"
    at_least: float = -math.inf  # its lowest value that passes
    at_most: float = math.inf  # its highest value that passes

    def __post_init__(self) -> None:
        if not self.at_least <= self.at_most or (math.isinf(self.at_least) and math.isinf(self.at_most)):
            raise ValueError(
                f"the threshold of {self.metric} is at_least {self.at_least:g} and at_most {self.at_most:g}; "
                "one of them must be given, and at_least be the smaller"
            )


@dataclass(frozen=True, kw_only=True)
class Deploy:
    """The gate, the place in MLflow's model registry, and the session that is played before anybody else's."""

    gate: tuple[Threshold, ...]  # all must be reached
    model: str = "relic"  # the registered model that an export becomes a version of
    alias: str = "production"  # what is moved to that version
    pictures: int = 48  # of the session
    picture_s: float = 30.0  # the longest wait for a picture, and for a key press to show in one
    start_s: float = 300.0  # for the server to load and to get warm
    text_encoder: str = ""  # umT5's folder, for a model that takes its embeddings

    def __post_init__(self) -> None:
        if not self.gate:
            raise ValueError("the gate has no threshold; it must have at least one, or every model passes")
        if self.pictures < 16:
            raise ValueError(f"pictures is {self.pictures}; it must be at least 16, or nothing can be seen to move")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where a step's processes run, how many, and what happens when one of them ends."""

    backend: Literal["local", "slurm", "ray", "pytorchjob"] = "local"  # this machine, a queue of Slurm, a Ray cluster
    # that exists, or Kubernetes: there the nodes, processes and restarts are the pool's unless they are given
    nodes: str = "1"  # machines; MIN:MAX may come and go while it runs
    processes: str = "auto"  # a node; auto: one a GPU, or one
    max_restarts: int = 0  # of all processes together, after one has failed or was killed
    grace_s: int = 300  # for saving, after SIGTERM or Ctrl-C; then the processes are killed (torch 2.11: after 30)
    dry_run: bool = False  # show what would be started

    endpoint: str = ""  # local: HOST:PORT of one of the nodes, where they meet; empty: one node, a free port
    job: str = "relic"  # local: a name that all nodes of one run give; ray: the run's name
    torchx: str = ""  # local, slurm: the command torchx; empty: RELIC_TORCHX, .venv/torchx/bin/torchx, or of PATH

    queue: str = ""  # slurm: options such as partition=gpu,time=24:00:00
    cpus: int = 8  # slurm, ray: cores for each process
    gpus: int = 1  # slurm, ray: GPUs for each process

    address: str = "auto"  # ray: of the cluster; auto: the one of this machine

    pool: str = ""  # pytorchjob: the nodes it runs on, by their name in the cluster's file, which RELIC_CLUSTER names

    def __post_init__(self) -> None:
        nodes_of(self.nodes)
        if self.processes != "auto" and not re.fullmatch(r"[1-9]\d*", self.processes):
            raise ValueError(f"processes is {self.processes!r}; it must be 'auto' or a number of at least 1")
        for name, least in (("max_restarts", 0), ("grace_s", 1), ("cpus", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.endpoint and not is_address(self.endpoint):
            raise ValueError(f"endpoint is {self.endpoint!r}; it must be HOST:PORT, the port 1 to 65535")
        if self.address != "auto" and not is_address(self.address):
            raise ValueError(f"address is {self.address!r}; it must be 'auto' or HOST:PORT of a Ray cluster")
        if self.backend == "local" and self.most_nodes > 1 and not self.endpoint:
            raise ValueError(f"nodes is {self.nodes}, so --endpoint must be HOST:PORT of one of them, the same on each")
        if (self.backend == "pytorchjob") != bool(self.pool):
            raise ValueError(f"backend is {self.backend} and pool {self.pool!r}; pytorchjob needs a pool, and it alone")
        if self.backend != "local" and self.processes == "auto":
            raise ValueError(f"processes is 'auto', which counts this machine's GPUs; {self.backend} needs a number")

    @property
    def least_nodes(self) -> int:
        return nodes_of(self.nodes)[0]

    @property
    def most_nodes(self) -> int:
        return nodes_of(self.nodes)[1]


def is_address(text: str) -> bool:
    """Whether it is HOST:PORT."""
    found = re.fullmatch(r"[^:\s]+:(\d{1,5})", text)
    return found is not None and 0 < int(found[1]) < 1 << 16
