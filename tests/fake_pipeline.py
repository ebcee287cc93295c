"""Steps that count, for tests of what carries steps: count (fanned out) → join → grow → report. No torch."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relic import steps
from relic.mistakes import UserError
from relic.pipeline.component import Component, Placeholder
from relic.pipeline.graph import FanOut, Graph, Input, Parameter, Step

FILES = 6


@dataclass(frozen=True, kw_only=True)
class Pace:
    sleep_s: float = 0.0  # a file
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Counting:
    seed: int = 0
    start: str = ""  # a file whose content counts
    fail_at: int = -1  # the file at which the step fails
    full_disk: bool = False
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    count: Counting
    grow: Counting


def named(name: str) -> Recipe:
    recipes = {"even": Counting(), "odd": Counting(seed=1), "broken": Counting(fail_at=2)}
    if name not in recipes:
        raise UserError(f"there is no recipe {name!r}; allowed are {', '.join(recipes)}")
    return Recipe(count=Counting(), grow=recipes[name])


def count(cfg: Counting, *, out: Path, run: Any, part: int = 0, parts: int = 1, **inputs: list[Path]) -> dict:
    """Writes FILES files, each with the pid that wrote it; goes on where a killed call stopped."""
    sleep_s = float(os.environ.get("FAKE_SLEEP_S", cfg.pace.sleep_s))
    for index in range(len(list(out.glob("file-*"))), FILES):
        if index == cfg.fail_at:
            raise RuntimeError("the counting broke")
        if cfg.full_disk:
            safetensors_says = "Error while serializing: I/O error: No space left on device (os error 28)"
            raise (
                RuntimeError(safetensors_says)
                if cfg.seed
                else OSError(28, "No space left on device", str(out / "file"))
            )
        time.sleep(sleep_s)
        (out / f"file-{index}").write_text(f"{os.getpid()}")
        run.log({"loss": 1 / (index + 1)}, index)
        run.progress(index + 1, FILES, f"file {index}")
    return {"files": FILES, "pids": len({path.read_text() for path in out.glob("file-*")})}


def report(cfg: None, *, grown: list[Path], out: Path, run: Any) -> dict:
    (out / "report.html").write_text("<p>counted</p>")
    (out / "report.json").write_text(json.dumps({"grown": len(list(grown[0].glob("file-*")))}))
    run.figure(out / "report.html")
    return {}


STEPS = (
    steps.Step(
        name="count", function="fake_pipeline:count", about="count", config="count", fan_out=True, files=("start",)
    ),
    steps.Step(name="join", function="fake_pipeline:count", about="join", config="count", inputs=("parts",)),
    steps.Step(name="grow", function="fake_pipeline:count", about="grow", config="grow", inputs=("joined",)),
    steps.Step(name="report", function="fake_pipeline:report", about="report", inputs=("grown",)),
)
TABLE = {step.name: step for step in STEPS}

GRAPH = Graph(
    name="counting",
    about="counts",
    parameters=tuple(
        Parameter(name=name, default=value, about="") for name, value in (("recipe", "even"), ("parts", "2"))
    ),
    steps=(
        Step(name="count", component="count", fan_out=FanOut("parts")),
        Step(name="join", component="join", inputs={"parts": Input("count")}),
        Step(name="grow", component="grow", inputs={"joined": Input("join")}),
        Step(name="report", component="report", inputs={"grown": Input("grow")}),
    ),
    report="report",
    world="grow",
)


def component(step: steps.Step) -> Component:
    names = ["recipe", "store", *step.inputs, *(("part", "parts") if step.fan_out else ())]
    options = [item for name in names for item in (f"--{name}", Placeholder("inputValue", name))]
    return Component(
        name=step.name, about=step.about, image="fake", outputs={"artifact": "String"},
        inputs={name: "List" if name == "parts" and not step.fan_out else "String" for name in names},
        command=(sys.executable, __file__, step.name, *options, "--artifact", Placeholder("outputPath", "artifact")),
    )  # fmt: skip


COMPONENTS = {name: component(step) for name, step in TABLE.items()}


def main(args: list[str] | None = None) -> int:
    """`relic` with these steps; `fake_pipeline.py pipeline OUT [RECIPE]` runs the graph."""
    from relic import __main__ as command
    from relic.pipeline import local

    given = sys.argv[1:] if args is None else args
    if given[0] != "pipeline":
        return command.main(given, TABLE, named)
    out = Path(given[1])
    recipe = given[2] if len(given) > 2 else "even"
    values = {"recipe": recipe, "store": str(out / "store"), "parts": "2"}
    with command.outcome("pipeline") as result:
        result["code"] = local.run(GRAPH, named(recipe), table=TABLE, components=COMPONENTS, values=values, out=out)
    return result["code"]


if __name__ == "__main__":
    sys.exit(main())
