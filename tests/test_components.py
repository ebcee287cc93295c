import inspect
from pathlib import Path

import pytest

from relic import __main__ as command
from relic import recipes, steps
from relic.mistakes import UserError
from relic.parallel.config import Parallel
from relic.pipeline import component, graph, plan

ROOT = Path(__file__).parents[1]
COMPONENTS = component.load_all(ROOT / "components")


def test_every_step_has_its_component_and_no_other_is_there() -> None:
    assert set(COMPONENTS) == set(steps.STEPS)
    assert all(found.name == folder for folder, found in COMPONENTS.items())


@pytest.mark.parametrize("step", steps.TABLE, ids=lambda step: step.name)
def test_a_component_takes_what_its_step_takes(step: steps.Step) -> None:
    found = COMPONENTS[step.name]
    assert set(found.inputs) == {"recipe", "store", *step.inputs, *(("part", "parts") if step.fan_out else ())}
    assert set(found.outputs) == {"artifact"}
    assert found.command[:2] == ("relic", step.name)


@pytest.mark.parametrize("step", steps.TABLE, ids=lambda step: step.name)
def test_the_command_line_takes_what_a_component_gives(step: steps.Step, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"/s/x/{'0' * 20}"
    called: dict = {}
    monkeypatch.setattr(steps, "perform", lambda step, config, **given: called.update(given) or uri)
    values = {name: "2" if name == "parts" and step.fan_out else "1" if name == "part" else uri
              for name in COMPONENTS[step.name].inputs} | {"recipe": "quick", "store": "/s"}  # fmt: skip
    line = COMPONENTS[step.name].command_line(values=values, paths={"artifact": "/dev/null"})
    assert command.main(line[1:]) == 0
    span = {"part": 1, "parts": 2} if step.fan_out else {"part": 0, "parts": 1}
    means = {"ray": "", "parallel": Parallel() if step.trains else None}
    assert called == {"store": "/s", "inputs": {name: [uri] for name in step.inputs}, **span, **means}


@pytest.mark.parametrize("step", steps.TABLE, ids=lambda step: step.name)
def test_a_function_takes_what_its_step_gives(step: steps.Step) -> None:
    expected = {
        *step.inputs,
        "out",
        "run",
        *(("part", "parts") if step.fan_out else ()),
        *(("ray",) if step.ray else ()),
        *(("mesh",) if step.trains else ()),
    }
    given = inspect.signature(steps.function_at(step.function)).parameters
    assert {name for name, parameter in given.items() if parameter.kind is parameter.KEYWORD_ONLY} == expected


def test_a_step_that_works_outside_the_store_can_say_whether_that_holds() -> None:
    for step in steps.TABLE:
        if step.holds:
            given = inspect.signature(steps.function_at(step.holds)).parameters
            assert set(given) == {"cfg", *step.inputs, "store"}
            assert step.by_uri


def test_the_graph_gives_every_component_its_inputs(tmp_path: Path) -> None:
    wired = graph.load(ROOT / "workflows" / "world_model.py")
    values = {**wired.defaults, "recipe": "quick", "store": str(tmp_path)}
    nodes = plan.make(wired, recipes.quick(), table=steps.STEPS, values=values)
    for node in nodes:
        line = plan.command_line(node, COMPONENTS[node.step.component], values=values, artifact="uri")
        assert line[:2] == ["relic", node.step.component]
    assert len(nodes) == 16


def test_no_component_names_a_machine() -> None:
    for path in (ROOT / "components").glob("*/*"):
        assert path.name == "component.yaml"
        assert not any(word in path.read_text() for word in ("/home", "/work", "/tmp", "python"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "is not a container component: ParserError"),
        ("name: a", "is not a container component: KeyError 'implementation'"),
        (
            "{name: a, implementation: {container: {image: i, command: [x, {inputValue: b}]}}}",
            "uses the inputValue 'b', which it does not declare",
        ),
        (
            "{name: a, implementation: {container: {image: i, command: [x, {inputUri: b}]}}}",
            "only inputValue and outputPath are allowed",
        ),
    ],
)
def test_a_wrong_component_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "component.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        component.load(tmp_path)


def test_a_folder_without_components_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no NAME/component\.yaml; run from a checkout of relic"):
        component.load_all(tmp_path)
