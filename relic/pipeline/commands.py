"""`relic pipeline ACTION`: the graph run here, or rendered for a cluster, submitted there and followed."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from relic import cluster, kube, recipes, steps
from relic.mistakes import UserError, allowed
from relic.options import about, parse
from relic.pipeline import component, graph, local, plan


@dataclass(frozen=True)
class Given:
    """What every action needs of the command line: the rest of it, and the tables of steps and recipes."""

    args: list[str]
    table: Mapping[str, steps.Step]
    named: Any  # the recipe of a name
    root: Path  # relic's checkout


def main(args: list[str], table: Mapping[str, steps.Step], named: Any, *, root: Path) -> int:
    """Run `relic pipeline ACTION [OPTIONS]`; returns the exit code."""
    if not args or args[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<10}{text}" for name, (text, _) in ACTIONS.items())
        print(f"usage: relic pipeline ACTION [OPTIONS]   (relic pipeline ACTION --help lists the options)\n\n{rows}")
        return 0 if args else 2
    if args[0] not in ACTIONS:
        raise UserError(f"there is no command 'pipeline {args[0]}'; {allowed(args[0], list(ACTIONS))}")
    return ACTIONS[args[0]][1](Given(args[1:], table, named, root))


def options_of(given: Given, action: str, described: list[tuple[str, type, Any, str, str]]) -> Any:
    """The options of an action, each (field, type, default, option, help)."""
    kind = make_dataclass(
        "Options",
        [(name, Annotated[kind, about(text, name=option)], default) for name, kind, default, option, text in described],
    )
    return parse(kind, given.args, f"relic pipeline {action}", ACTIONS[action][0])


WORKFLOW = ("workflow", str, "world_model", "workflow", "file of workflows/ that defines the graph")


def run(given: Given) -> int:
    options = options_of(given, "run", [
        ("recipe", str, "tiny", "recipe", "whose dials the steps take"),
        ("out", str, "out/demo", "out", "folder for logs, report and run.json"),
        ("store", str, "", "store", "where artifacts are kept: a folder or s3://BUCKET/PREFIX; empty: OUT/store"),
        ("parts", int, 0, "parts", "parts of the fan-outs; 0: as the workflow says"),
        ("first", str, "", "from", "start with this step; what it needs must be finished"),
        ("until", str, "", "until", "stop after this step"),
        ("dry_run", bool, False, "dry-run", "show the steps, their keys, and what is finished; run nothing"),
        WORKFLOW,
        ("root", str, "", "root", "folder that holds components/ and workflows/; empty: relic's checkout"),
    ])  # fmt: skip
    root = Path(options.root) if options.root else given.root
    wired = graph.load(root / "workflows" / f"{options.workflow}.py")
    values = {**wired.defaults, "recipe": options.recipe, "store": options.store or f"{options.out}/store"}
    if options.parts:
        values["parts"] = str(options.parts)
    if "://" not in values["store"]:
        values["store"] = Path(values["store"]).absolute().as_posix()
    return local.run(
        wired, given.named(options.recipe), table=given.table, components=component.load_all(root / "components"),
        values=values, out=Path(options.out), first=options.first, until=options.until, dry_run=options.dry_run,
    )  # fmt: skip


def render(given: Given) -> int:
    options = options_of(given, "render", [
        ("cluster", str, "", "cluster", "the cluster's file, such as workflows/clusters/one_gpu.yaml"),
        ("out", str, "", "out", "file that is written; empty: print"),
        WORKFLOW,
        ("root", str, "", "root", "folder that holds components/ and workflows/; empty: relic's checkout"),
    ])  # fmt: skip
    if not options.cluster:
        raise UserError("relic pipeline render needs --cluster: the cluster's file; workflows/clusters/ has examples")
    root, path = Path(options.root) if options.root else given.root, Path(options.cluster)
    from relic.pipeline import argo

    source = argo.Rendering(
        workflow=options.workflow, graph=graph.load(root / "workflows" / f"{options.workflow}.py"),
        cluster=cluster.load(path), table=given.table, components=component.load_all(root / "components"),
        recipes=recipes.RECIPES,
    )  # fmt: skip
    text = argo.render(source, path.read_text())
    if options.out:
        Path(options.out).write_text(text)
    print(options.out or text, flush=True)
    return 0


# On a cluster

CLUSTER = ("cluster", str, "", "cluster", "the cluster's file, such as workflows/clusters/one_gpu.yaml")
VALUES: list[tuple[str, type, Any, str, str]] = [
    ("recipe", str, "", "recipe", "whose dials the steps take; empty: the cluster's"),
    ("store", str, "", "store", "where artifacts are kept: s3://BUCKET/PREFIX; empty: the cluster's"),
    ("parts", str, "", "parts", "parts of the fan-outs; empty: the cluster's"),
    ("nodes", str, "", "nodes", "pods of a training, a number or MIN:MAX; empty: the pool's"),
    ("deploy", str, "", "deploy", "whether what passes the gate is served: yes or no; empty: yes"),
]


def cluster_of(options: Any, action: str) -> Any:
    if not options.cluster:
        raise UserError(f"relic pipeline {action} needs --cluster FILE; workflows/clusters/ has examples")
    return cluster.load(Path(options.cluster))


def values_of(options: Any) -> dict[str, str]:
    return {name: getattr(options, name) for name, *_ in VALUES}


def named_first(given: Given, action: str, words: tuple[str, ...], *, least: int) -> tuple[list[str], Given]:
    """What stands before the options: NAME, or NAME STEP."""
    first = list(takewhile(lambda arg: not arg.startswith("-"), given.args))
    helped = {"-h", "--help"} & set(given.args)
    if not helped and not least <= len(first) <= len(words):
        said = " ".join(first) or "nothing"
        raise UserError(f"relic pipeline {action} is given {said!r}; it takes {' '.join(words)} before its options")
    return first, replace(given, args=given.args[len(first) :])


def submit(given: Given) -> int:
    options = options_of(given, "submit", [
        CLUSTER, *VALUES,
        ("name", str, "", "name", "of the run; empty: a new one"),
        ("file", str, "", "file", "a Workflow such as workflows/runs/tiny.yaml, whose values the options replace"),
    ])  # fmt: skip
    found = cluster_of(options, "submit")
    from relic.pipeline import ends, runs

    values = values_of(options)
    ends.checked(found, given.named, {**values, **runs.parameters(options.file), **filled(values)})
    name = runs.submit(kube.Api(found.namespace), values, name=options.name, file=options.file)
    print(name)
    print(f"follow it: relic pipeline status {name} --cluster {options.cluster}", file=sys.stderr)
    if link := ends.page(found, name):
        print(f"look at it: {link}", file=sys.stderr)
    return 0


def filled(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def status(given: Given) -> int:
    first, rest = named_first(given, "status", ("[NAME]",), least=0)
    found = cluster_of(options_of(rest, "status", [CLUSTER]), "status")
    from relic.pipeline import status

    api = kube.Api(found.namespace)
    print(status.detailed(api, found, first[0]) if first else status.listed(api))
    return 0


def logs(given: Given) -> int:
    first, rest = named_first(given, "logs", ("NAME", "STEP"), least=2)
    found = cluster_of(options_of(rest, "logs", [CLUSTER]), "logs")
    from relic.pipeline import runs

    for line in runs.logs(kube.Api(found.namespace), first[0], first[1]):
        print(line, flush=True)
    return 0


def stop(given: Given) -> int:
    first, rest = named_first(given, "stop", ("NAME",), least=1)
    found = cluster_of(options_of(rest, "stop", [CLUSTER]), "stop")
    from relic.pipeline import runs

    print(runs.stop(kube.Api(found.namespace), first[0]))
    return 0


def begin(given: Given) -> int:
    options = options_of(given, "begin", [
        *VALUES, WORKFLOW, ("run", str, "/tmp/run", "run", "a file that receives the id of MLflow's run"),
    ])  # fmt: skip
    from relic.pipeline import ends

    title, values, _ = planned(given, values_of(options), options.workflow)
    ends.begin(title, values, Path(options.run))
    return 0


def end(given: Given) -> int:
    options = options_of(
        given, "end", [*VALUES, WORKFLOW, ("status", str, "Failed", "status", "how Argo says the workflow ended")]
    )
    from relic.pipeline import ends

    values = values_of(options)
    try:
        title, values, nodes = planned(given, values, options.workflow)
    except ValueError as error:  # which `begin` has refused, so that nothing was made
        print(f"warning: {error}", file=sys.stderr)
        title, nodes = values["recipe"], []
    ends.end(title, values, nodes, options.status)
    return 0


def planned(given: Given, said: Mapping[str, str], workflow: str) -> tuple[str, dict[str, str], list[plan.Node]]:
    """The title, values and nodes of this pod's workflow, with the cluster's defaults where a person said nothing."""
    from relic.pipeline import ends

    here, _, _ = ends.here()
    ends.checked(here, given.named, said)
    wired = graph.load(given.root / "workflows" / f"{workflow}.py")
    defaults = {"recipe": here.recipe, "store": here.store, "parts": str(here.parts), "nodes": "", "deploy": "yes"}
    values = {**wired.defaults, **defaults, **filled(said)}
    nodes = plan.make(wired, given.named(values["recipe"]), table=given.table, values=values)
    return f"{wired.name} {values['recipe']}", values, nodes


ACTIONS: dict[str, tuple[str, Callable[[Given], int]]] = {
    "run": ("run every step of the graph here, in order", run),
    "render": ("write the graph as an Argo WorkflowTemplate for a cluster", render),
    "submit": ("start a run on a cluster: relic pipeline submit --cluster FILE --recipe tiny", submit),
    "status": ("the runs of a cluster, or one of them: relic pipeline status [NAME] --cluster FILE", status),
    "logs": ("follow a step's log: relic pipeline logs NAME STEP --cluster FILE", logs),
    "stop": ("stop a run: relic pipeline stop NAME --cluster FILE", stop),
    "begin": ("in a workflow's first pod: check the cluster, open MLflow's run", begin),
    "end": ("in a workflow's last pod: delete what is left, close MLflow's run", end),
}
