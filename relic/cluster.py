"""What a Kubernetes cluster has: a file of workflows/clusters/, typed and checked. Loads no torch.

Nothing of a cluster sits in Python: its pools of nodes, queue, store, accounts and images are said here once, for the
rendered workflow, the launcher, `relic cluster check` and the roll-out. In a pod RELIC_CLUSTER names the file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from relic.mistakes import UserError, allowed, nodes_of

FILE = "RELIC_CLUSTER"  # the variable with the path of the file, in every pod of a run
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """Of a taint of nodes, as Kubernetes writes it."""

    key: str
    operator: str = "Exists"  # or Equal, with a value
    value: str = ""
    effect: str = "NoSchedule"

    def __post_init__(self) -> None:
        if self.operator not in ("Exists", "Equal"):
            raise ValueError(f"operator is {self.operator!r}; allowed are Exists and Equal")
        if self.effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise ValueError(f"effect is {self.effect!r}; allowed are NoSchedule, PreferNoSchedule and NoExecute")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Nodes of one kind, and what a pod of a step asks of one of them."""

    cpu: str = "1"  # cores, requested
    memory: str = "4Gi"  # requested, and the limit
    gpus: int = 0  # a pod
    nodes: str = "1"  # pods of a training; MIN:MAX may come and go
    processes: int = 1  # of a training, in each pod
    scratch: str = "20Gi"  # of the disk, for the copies of artifacts that a pod works on
    shared_memory: str = "1Gi"  # of /dev/shm, which counts as memory
    topology: str = ""  # a node label whose value the pods of a training should share, such as a rack's
    scales: bool = False  # an autoscaler adds nodes when pods wait, so that there may be none before a run
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # such as NCCL_SOCKET_IFNAME
    resources: Mapping[str, str] = field(default_factory=dict)  # what a pod asks beside, such as rdma/hca: "1"
    runtime_class: str = ""  # of what is launched; GPUs want `nvidia` on k3s and RKE2, nothing under the GPU operator
    priority_class: str = ""  # of what is launched; Kubernetes' own, which ends pods of a lower one to make room

    def __post_init__(self) -> None:
        for name in ("cpu", "memory", "scratch", "shared_memory"):
            if not QUANTITY.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a quantity such as 500m or 8Gi")
        for name, asked in self.resources.items():
            if not QUANTITY.fullmatch(asked):
                raise ValueError(f"resources has {name}: {asked!r}; it must be a quantity such as 1 or 8Gi")
        nodes_of(self.nodes)
        if self.gpus < 0 or self.processes < 1:
            raise ValueError(f"gpus is {self.gpus} and processes {self.processes}; allowed are at least 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Each by digest, NAME@sha256:…, unless the cluster is for tests: what a tag names can change under a run."""

    train: str
    serve: str
    control: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pull_policy not in ("Always", "IfNotPresent", "Never"):
            raise ValueError(f"pull_policy is {self.pull_policy!r}; allowed are Always, IfNotPresent and Never")


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Service accounts, as charts/relic-platform makes them."""

    step: str = "relic-step"  # of the steps and the training's pods: nothing but Argo's results, and the store
    launcher: str = "relic-launcher"  # makes, follows and deletes PyTorchJobs; checks the cluster
    deploy: str = "relic-deploy"  # rolls the served model out


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The Deployment that people's sessions go to, as charts/relic-serve makes it."""

    deployment: str = "relic-serve"
    address: str = "http://relic-serve:8000"  # of its Service
    keys_secret: str = ""  # whose key `deploy` is the API key that the roll-out's own session uses; empty: open to all


@dataclass(frozen=True, kw_only=True)
class Cluster:
    name: str
    store: str  # s3://BUCKET/PREFIX
    images: Images
    pools: Mapping[str, Pool]  # of the names that the graph knows: cpu, gpu, training
    namespace: str = "relic"
    store_secret: str = ""  # with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty: the accounts' own identity
    environment: Mapping[str, str] = field(default_factory=dict)  # of all pods, such as AWS_ENDPOINT_URL
    mlflow: str = ""  # the server's address; empty: figures stay beside the artifacts
    mlflow_secret: str = ""  # with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD
    argo: str = ""  # the address of Argo's page, for links
    queue: str = ""  # Kueue's LocalQueue for what asks for GPUs and for trainings; empty: no Kueue
    gpu: str = "nvidia.com/gpu"  # the resource's name
    storage_class: str = ""  # that must exist; empty: none is needed
    accounts: Accounts = field(default_factory=Accounts)
    serving: Serving | None = None  # none: what is deployed gets its alias, and no roll-out
    recipe: str = "tiny"  # the default of the run's parameter
    parts: int = 8  # the default number of parts of the fan-outs
    parallelism: int = 32  # pods of steps at a time
    retries: int = 4  # of a step whose pod was lost
    step_s: int = 86400  # the longest step
    keep_s: int = 604800  # a finished workflow, and its jobs

    def __post_init__(self) -> None:
        if not self.store.startswith("s3://"):
            raise ValueError(f"store is {self.store!r}; it must be s3://BUCKET/PREFIX, which all pods can reach")
        for what in ("name", "namespace"):
            if not NAME.fullmatch(getattr(self, what)):
                raise ValueError(f"{what} is {getattr(self, what)!r}; allowed are small letters, digits and hyphens")

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise UserError(f"cluster {self.name} has no pool {name!r}; {allowed(name, list(self.pools))}")
        return self.pools[name]


class Loader(yaml.SafeLoader):
    """Its numbers are decimal. YAML 1.1 has others: it takes the nodes 2:8 for 128, on the base of sixty."""


INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (INT, FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
Loader.add_implicit_resolver(FLOAT, re.compile(r"[-+]?\d+\.\d*$"), list("-+0123456789"))


def load(path: Path) -> Cluster:
    """The cluster of a file; a mistake in it is one sentence."""
    if not path.is_file():
        raise UserError(f"there is no cluster file {path}; workflows/clusters/ has examples")
    try:
        said = yaml.load(path.read_text(), Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return made(Cluster, said, str(path))


def of_pod() -> Cluster | None:
    """The cluster that this process runs in; None outside."""
    return load(Path(os.environ[FILE])) if FILE in os.environ else None


def made(kind: Any, said: Any, where: str) -> Any:
    """A dataclass of what YAML says, field by field."""
    if not isinstance(said, dict):
        raise UserError(f"{where} is {said!r}; it must have fields such as {fields(kind)[0].name}")
    known = {item.name for item in fields(kind)}
    for name in said:
        if name not in known:
            raise UserError(f"{where} has a field {name!r}; {allowed(str(name), sorted(known))}")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: value_of(hints[name], value, f"{where}: {name}") for name, value in said.items()})
    except TypeError as error:
        raise UserError(f"{where}: {str(error).partition(') ')[2] or error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def value_of(kind: Any, said: Any, where: str) -> Any:
    """A field's value as its annotation says."""
    if type(None) in get_args(kind):
        if said is None:
            return None
        kind = get_args(kind)[0]
    if is_dataclass(kind):
        return made(kind, said, where)
    if get_origin(kind) is tuple:
        if not isinstance(said, list):
            raise UserError(f"{where} is {said!r}; it must be a list")
        return tuple(value_of(get_args(kind)[0], item, f"{where}[{at}]") for at, item in enumerate(said))
    if get_origin(kind) is Mapping:
        if not isinstance(said, dict):
            raise UserError(f"{where} is {said!r}; it must have names and values")
        return {str(name): value_of(get_args(kind)[1], item, f"{where}.{name}") for name, item in said.items()}
    if kind is str and isinstance(said, (int, float)) and not isinstance(said, bool):
        return str(said)
    if not isinstance(said, kind) or (isinstance(said, bool) and kind is not bool):
        wanted = {int: "a whole number", bool: "true or false"}.get(kind, "text")
        raise UserError(f"{where} is {said!r}; it must be {wanted}")
    return said
