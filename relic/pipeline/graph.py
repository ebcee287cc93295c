"""A pipeline as plain values: which component a step runs, whose artifacts it reads, what it asks of a machine.

Nothing here says where it runs: the local runner and a cluster's template are made from the same graph.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relic.mistakes import UserError


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A value that a person gives when the pipeline is started."""

    name: str
    default: str
    about: str


@dataclass(frozen=True)
class Input:
    """The artifact of another step; of a step that is fanned out, the list of all its parts'."""

    step: str


@dataclass(frozen=True)
class FanOut:
    """A step runs once a part; the graph's parameter of this name says how many parts."""

    parts: str = "parts"


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    component: str  # a folder of components/
    inputs: Mapping[str, Input] = field(default_factory=dict)
    fan_out: FanOut | None = None
    pool: str = "cpu"  # of machines, by a name that a cluster's file knows


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Steps in any order. `report` is the step whose files a person looks at, `world` the one that is walked in."""

    name: str
    about: str
    parameters: tuple[Parameter, ...]
    steps: tuple[Step, ...]
    report: str
    world: str

    def __post_init__(self) -> None:
        names, known = [step.name for step in self.steps], ", ".join(self.defaults)
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"graph {self.name} has {', '.join(sorted(twice))} twice; a step's name must be its own")
        for step in self.steps:
            for name, source in step.inputs.items():
                if source.step not in names:
                    raise ValueError(f"{step.name} reads {name} from {source.step!r}; the steps are {', '.join(names)}")
            if step.fan_out and step.fan_out.parts not in self.defaults:
                raise ValueError(f"{step.name} is fanned out by {step.fan_out.parts!r}; parameters are {known}")
        for what, name in (("report", self.report), ("world", self.world)):
            if name not in names:
                raise ValueError(f"the {what} is of {name!r}; the steps are {', '.join(names)}")
        self.ordered()

    @property
    def defaults(self) -> dict[str, str]:
        return {parameter.name: parameter.default for parameter in self.parameters}

    def ordered(self) -> tuple[Step, ...]:
        """The steps, each after those that it reads from."""
        done: dict[str, Step] = {}
        while len(done) < len(self.steps):
            ready = [
                step for step in self.steps
                if step.name not in done and all(source.step in done for source in step.inputs.values())
            ]  # fmt: skip
            if not ready:
                left = ", ".join(step.name for step in self.steps if step.name not in done)
                raise ValueError(f"the steps {left} wait for each other; a graph must have no circle")
            done |= {step.name: step for step in ready}
        return tuple(done.values())


def load(path: Path) -> Graph:
    """The `graph` of a file of workflows/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"there is no workflow {path}; give a Python file that defines `graph`")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.graph
