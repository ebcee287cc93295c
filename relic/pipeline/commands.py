"""`relic pipeline ACTION`: the graph run here, or rendered for a cluster, submitted there and followed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from relic import cluster, recipes, steps
from relic.mistakes import UserError, allowed
from relic.options import about, parse
from relic.pipeline import component, graph, local


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


def run(given: Given) -> int:
    options = options_of(given, "run", [
        ("recipe", str, "tiny", "recipe", "whose dials the steps take"),
        ("out", str, "out/demo", "out", "folder for logs, report and run.json"),
        ("store", str, "", "store", "where artifacts are kept: a folder or s3://BUCKET/PREFIX; empty: OUT/store"),
        ("parts", int, 0, "parts", "parts of the fan-outs; 0: as the workflow says"),
        ("first", str, "", "from", "start with this step; what it needs must be finished"),
        ("until", str, "", "until", "stop after this step"),
        ("dry_run", bool, False, "dry-run", "show the steps, their keys, and what is finished; run nothing"),
        ("workflow", str, "world_model", "workflow", "file of workflows/ that defines the graph"),
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
        ("workflow", str, "world_model", "workflow", "file of workflows/ that defines the graph"),
        ("root", str, "", "root", "folder that holds components/ and workflows/; empty: relic's checkout"),
    ])  # fmt: skip
    if not options.cluster:
        raise UserError("relic pipeline render needs --cluster: the cluster's file; workflows/clusters/ has examples")
    root, path = Path(options.root) if options.root else given.root, Path(options.cluster)
    from relic.pipeline import argo

    source = argo.Rendering(
        graph=graph.load(root / "workflows" / f"{options.workflow}.py"), cluster=cluster.load(path), table=given.table,
        components=component.load_all(root / "components"), recipes=recipes.RECIPES,
    )  # fmt: skip
    text = argo.render(source, path.read_text())
    if options.out:
        Path(options.out).write_text(text)
    print(options.out or text, flush=True)
    return 0


ACTIONS: dict[str, tuple[str, Callable[[Given], int]]] = {
    "run": ("run every step of the graph here, in order", run),
    "render": ("write the graph as an Argo WorkflowTemplate for a cluster", render),
}
