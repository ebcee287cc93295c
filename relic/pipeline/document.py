"""Kubernetes objects as YAML that a person reads: names first, long text in blocks, what is small on one line."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

WIDTH = 110
FIRST = (
    "apiVersion", "kind", "name", "generateName", "metadata", "description", "template", "dependencies",
    "entrypoint", "arguments", "inputs", "image", "command", "args",
)  # fmt: skip
LAST = ("volumes", "outputs", "templates")


class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # items of a list stand under its name, moved to the right


def text(dumper: Dumper, said: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", said, style="|" if "\n" in said else None)


def mapping(dumper: Dumper, said: Mapping[str, Any]) -> yaml.MappingNode:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", ordered(said))
    node.flow_style = is_small(said)
    return node


def sequence(dumper: Dumper, said: list[Any]) -> yaml.SequenceNode:
    node = dumper.represent_sequence("tag:yaml.org,2002:seq", said)
    node.flow_style = is_small(said)
    return node


def ordered(said: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    places = {name: at - len(FIRST) for at, name in enumerate(FIRST)} | {name: 1 + at for at, name in enumerate(LAST)}
    return sorted(said.items(), key=lambda item: places.get(item[0], 0))


def is_small(said: Any) -> bool:
    """Whether a line has room for it, and nobody looks for a list of objects there."""
    inside = list(said.values() if isinstance(said, Mapping) else said)
    if not isinstance(said, Mapping) and any(isinstance(item, Mapping) for item in inside):
        return False
    return len(str(said)) < WIDTH - 20 and "\n" not in str(inside) and all(is_flat(item) for item in inside)


def is_flat(said: Any) -> bool:
    inside = said.values() if isinstance(said, Mapping) else said if isinstance(said, list) else ()
    return not any(isinstance(item, (Mapping, list)) for item in inside)


Dumper.add_representer(str, text)
Dumper.add_representer(dict, mapping)
Dumper.add_representer(list, sequence)


def dump(objects: list[dict[str, Any]]) -> str:
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=WIDTH, allow_unicode=True)
