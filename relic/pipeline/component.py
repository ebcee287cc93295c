"""Reads component.yaml, Kubeflow Pipelines' container-component format: what a step takes, gives and runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from relic.mistakes import UserError


@dataclass(frozen=True)
class Placeholder:
    """A place in the command line: the value of an input, or the path where an output is written."""

    kind: str  # inputValue or outputPath
    name: str


@dataclass(frozen=True, kw_only=True)
class Component:
    name: str
    about: str
    inputs: Mapping[str, str]  # name -> type
    outputs: Mapping[str, str]
    image: str
    command: tuple[str | Placeholder, ...]

    def command_line(self, *, values: Mapping[str, str], paths: Mapping[str, str]) -> list[str]:
        """The command with the inputs' values and the outputs' paths put in."""
        for given, wanted in ((values, self.inputs), (paths, self.outputs)):
            if set(given) != set(wanted):
                raise ValueError(f"component {self.name} is given {sorted(given)}; it takes {sorted(wanted)}")
        known = {"inputValue": values, "outputPath": paths}
        return [known[item.kind][item.name] if isinstance(item, Placeholder) else item for item in self.command]


def load(folder: Path) -> Component:
    """The component of a folder that holds a component.yaml."""
    path = folder / "component.yaml"
    if not path.is_file():
        raise UserError(f"there is no component {folder.name!r}: {path} does not exist")
    try:
        said = yaml.safe_load(path.read_text())
        container = said["implementation"]["container"]
        component = Component(
            name=said["name"],
            about=said.get("description", ""),
            inputs={port["name"]: str(port.get("type", "String")) for port in said.get("inputs", [])},
            outputs={port["name"]: str(port.get("type", "String")) for port in said.get("outputs", [])},
            image=container["image"],
            command=tuple(piece(item) for item in [*container["command"], *container.get("args", [])]),
        )
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a container component: {type(error).__name__} {error}") from error
    declared = {"inputValue": component.inputs, "outputPath": component.outputs}
    for item in component.command:
        if isinstance(item, Placeholder) and item.name not in declared[item.kind]:
            raise UserError(f"{path} uses the {item.kind} {item.name!r}, which it does not declare")
    return component


def piece(item: Any) -> str | Placeholder:
    if not isinstance(item, dict):
        return str(item)
    ((kind, name),) = item.items()
    if kind not in ("inputValue", "outputPath"):
        raise KeyError(f"{kind}: only inputValue and outputPath are allowed in a command")
    return Placeholder(kind, name)


def load_all(root: Path) -> dict[str, Component]:
    """Every component of a folder such as components/, by its folder's name."""
    found = {path.parent.name: load(path.parent) for path in sorted(root.glob("*/component.yaml"))}
    if not found:
        raise UserError(f"{root} holds no NAME/component.yaml; run from a checkout of relic")
    return found
