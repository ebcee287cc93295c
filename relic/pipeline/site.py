"""What the checks of a cluster look at, and the words for what they find."""

from dataclasses import dataclass

from relic import kube
from relic.cluster import Cluster
from relic.parallel.config import Finding


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster, as its file says and as its server answers."""

    cluster: Cluster
    api: kube.Api
    inside: bool = False  # whether this is a pod of a run, with the launcher's account
    images: bool = True  # whether images are pulled
    store: str = ""  # of this run; empty: the cluster's
    nodes: str = ""  # pods of a training of this run; empty: the pool's
    deploys: bool = True  # whether this run rolls out what it makes


def good(name: str, said: str) -> Finding:
    return Finding(verdict="ok", name=name, said=said)


def odd(name: str, said: str) -> Finding:
    return Finding(verdict="warn", name=name, said=said)


def bad(name: str, said: str) -> Finding:
    return Finding(verdict="fail", name=name, said=said)
