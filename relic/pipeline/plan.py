"""What a graph comes to with a recipe and a store: nodes with keys, known before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relic import artifacts, steps, stores
from relic.mistakes import UserError, allowed
from relic.pipeline.component import Component
from relic.pipeline.graph import Graph, Step

# Of a list in a command, which is one argument: Linux's MAX_ARG_STRLEN, less room for the rest of the line, which
# `relic launch` gives to bash as one argument too.
LIST_BYTES = 2**17 - 2**13


@dataclass(frozen=True, kw_only=True)
class Node:
    """One command: a step of the graph, or one part of it."""

    name: str
    step: Step
    part: int
    parts: int
    key: str
    uri: str
    inputs: dict[str, list[str]]  # input -> URIs
    after: frozenset[str]  # names of the nodes whose artifacts it reads


def make(graph: Graph, recipe: Any, *, table: Mapping[str, steps.Step], values: Mapping[str, str]) -> list[Node]:
    """The nodes of a graph, each after those it reads from."""
    place = stores.open_store(values["store"])
    nodes: dict[str, list[Node]] = {}
    for step in graph.ordered():
        entry = table[step.component]
        inputs = {name: [node.uri for node in nodes[source.step]] for name, source in step.inputs.items()}
        after = frozenset(node.name for source in step.inputs.values() for node in nodes[source.step])
        for uris in inputs.values():
            check_fits(step.name, uris)
        parts = number_of_parts(values[step.fan_out.parts]) if step.fan_out else 1
        config = getattr(recipe, entry.config) if entry.config else None
        nodes[step.name] = []
        for part in range(parts):
            key = steps.key(entry, steps.parameters(entry, config, part=part, parts=parts), inputs)
            name = f"{step.name}-{part}" if step.fan_out else step.name
            uri = place.uri(entry.name, key)
            node = Node(name=name, step=step, part=part, parts=parts, key=key, uri=uri, inputs=inputs, after=after)
            nodes[step.name].append(node)
    return [node for found in nodes.values() for node in found]


def number_of_parts(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 10_000:
        raise UserError(f"parts is {value}; it must be 1 to 10000")
    return int(value)


def check_fits(name: str, uris: list[str]) -> None:
    """Whether a command can be given all parts of a fan-out."""
    size = len(as_value(uris, "List").encode())
    if size > LIST_BYTES:
        raise UserError(
            f"parts is {len(uris)}, and {name} is given the URI of each in one argument of at most {LIST_BYTES} bytes; "
            f"with this store it can be {LIST_BYTES * len(uris) // size}"
        )


def command_line(node: Node, component: Component, *, values: Mapping[str, str], artifact: str) -> list[str]:
    """The component's command for a node: a list of one URI is given as the URI, a fan-out's as JSON."""
    given = {**values, "part": str(node.part), "parts": str(node.parts)} if node.step.fan_out else dict(values)
    given |= {name: as_value(uris, component.inputs.get(name, "")) for name, uris in node.inputs.items()}
    wanted = {name: value for name, value in given.items() if name in component.inputs}
    return component.command_line(values=wanted, paths={"artifact": artifact})


def as_value(uris: list[str], kind: str) -> str:
    if kind == "List":
        return "[" + ",".join(f'"{uri}"' for uri in uris) + "]"
    if len(uris) != 1:
        raise ValueError(f"a component takes one artifact here and is given {len(uris)}; join the parts first")
    return uris[0]


def chosen(graph: Graph, nodes: list[Node], *, first: str = "", until: str = "") -> list[Node]:
    """The nodes from `first` to `until`: what lies on the way between them, both included."""
    names = [step.name for step in graph.ordered()]
    for option, name in (("--from", first), ("--until", until)):
        if name and name not in names:
            raise UserError(f"{option} is {name!r}; {allowed(name, names)}")
    sources = {step.name: {source.step for source in step.inputs.values()} for step in graph.steps}
    readers = {name: {other for other in names if name in sources[other]} for name in names}
    later, earlier = reach(names, sources, first), reach(names, readers, until)
    return [node for node in nodes if node.step.name in later & earlier]


def reach(names: list[str], sources: Mapping[str, set[str]], start: str) -> set[str]:
    """`start` and all that is reached from it, against the direction of `sources`; everything where start is empty."""
    if not start:
        return set(names)
    found = {start}
    while more := {name for name in names if name not in found and sources[name] & found}:
        found |= more
    return found


def finished(nodes: list[Node], store: str) -> dict[str, dict]:
    """Manifests of the nodes whose artifact is there."""
    place = stores.open_store(store)
    found = {node.name: place.manifest(node.step.component, node.key) for node in nodes}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def table_of(nodes: list[Node], done: Mapping[str, Any]) -> str:
    """What `--dry-run` shows."""
    width = max(len(node.name) for node in nodes)
    rows = [f"{node.name:<{width}}  {node.key}  {'finished' if node.name in done else 'to do'}" for node in nodes]
    return "\n".join([f"{'step':<{width}}  {'key':<{artifacts.KEY_LENGTH}}  state", *rows])
