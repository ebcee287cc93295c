"""Who may import whom: the table of docs/architecture.md, held by `ast`."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "geometry",
    "memory",
    "parallel",
    "model",
    "pretrained",
    "worlds",
    "data",
    "generate",
    "train",
    "evaluate",
    "serve",
]
NEVER = {
    "geometry": set(ORDER),
    "memory": set(ORDER),
    "train": {"evaluate", "serve"},
    "evaluate": {"train", "serve"},
    "serve": {"worlds", "data", "train", "evaluate"},
}
HELPERS = {
    "artifacts",
    "mistakes",
    "object_store",
    "place",
    "stores",
    "tracking",
    "verdict",
}  # of the root, for worlds and what comes after it
FACTS = {"launch.doctor", "launch.state"}  # of a machine and of a job, in words
CLUSTER = {"cluster", "kube", "pod_facts", "pods"}  # of the root, for what runs on Kubernetes
PURE = {"geometry", "memory", "model", "generate"}  # run on any GPU machine as they are
PURE_NEEDS = {"torch", "einops", "numpy", "safetensors"}
KERNELS = {"attention.py": {"flash_attn"}}  # imported inside the one function that a config's word leads to
CONFIGS = {f"{room}.config" for room in ORDER}
TORCH_FREE = {  # of the root and pipeline -> what of ours it may import
    "mistakes": set(),
    "artifacts": {"mistakes"},
    "object_store": {"artifacts", "mistakes", "verdict"},
    "stores": {"artifacts", "mistakes", "object_store"},
    "place": {"artifacts", "mistakes", "object_store"},
    "tracking": set(),
    "verdict": set(),
    "endings": {"verdict"},
    "options": {"mistakes"},
    "steps": {"artifacts", "mistakes", "stores", "tracking", "verdict"},
    "call": {"options", "steps", "stores"},
    "recipe": {"launch.config", *CONFIGS},
    "recipes_wan": {"recipe", "launch.config", *CONFIGS},
    "recipes": {"mistakes", "launch.config", "recipe", "recipes_wan", *CONFIGS},
    "cluster": {"mistakes"},
    "pods": {"cluster"},
    "kube": {"mistakes", "verdict"},
    "pod_facts": set(),
    "pipeline": {
        *HELPERS,
        *CLUSTER,
        "options",
        "steps",
        "recipes",
        "pipeline",
        "launch.doctor",
        "launch.state",
        *CONFIGS,
    },
    "launch": {*HELPERS, *CLUSTER, "call", "steps", "recipes", "launch", "serve.client", *CONFIGS},
}
FILES = sorted((ROOT / "relic").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, with dots; `from relic.data import clip` counts as relic.data.clip."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """What a file imports of relic, without the `relic.`"""
    return {name.removeprefix("relic.") for name in imported(path) if name.startswith("relic.")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "relic").parts[0].removesuffix(".py")


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    left = set(ORDER[: ORDER.index(room)]) - NEVER.get(room, set())
    allowed = left | {room} | (HELPERS if ORDER.index(room) >= ORDER.index("worlds") else set())
    for path in FILES:
        if room_of(path) == room:
            wrong = {name for name in ours(path) if name.split(".")[0] not in allowed | {"__version__"}}
            assert not wrong, f"{path} imports {sorted(wrong)}; {room} may import {sorted(allowed)}"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_carries_steps_imports_only_configs_and_helpers(name: str) -> None:
    for path in FILES:
        if room_of(path) == name:
            names = ours(path)
            wrong = {
                m for m in names if not any(m == a or m.startswith(f"{a}.") for a in TORCH_FREE[name] | {"__version__"})
            }
            assert not wrong, f"{path} imports {sorted(wrong)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {".".join(path.relative_to(ROOT / "relic").with_suffix("").parts): ours(path) for path in FILES}
    beneath = {
        name: {module for one in names for module in (one, one.rpartition(".")[0]) if module in files} - {name}
        for name, names in files.items()
    }
    TopologicalSorter(beneath).prepare()


def test_the_map_of_serve_has_every_file_once_and_imports_go_down_it() -> None:
    room = ROOT / "relic" / "serve"
    files = {path.stem: {name.split(".")[1] for name in ours(path) if name.startswith("serve.")}
             for path in room.glob("[a-z]*.py")}  # fmt: skip
    lines = enumerate((room / "__init__.py").read_text().splitlines())
    stands = [(name, row) for row, line in lines for name in re.findall(r"(?:  |· )(\w+)", line) if name in files]
    assert sorted(name for name, _ in stands) == sorted(files)
    for name, row in stands:
        wrong = {other for other in files[name] if dict(stands)[other] < row}
        assert not wrong, f"{name} imports {sorted(wrong)}, which stands above it"


@pytest.mark.parametrize("room", sorted(PURE))
def test_a_pure_room_needs_torch_einops_numpy_and_safetensors_only(room: str) -> None:
    for path in FILES:
        if room_of(path) == room:
            foreign = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"relic"}
            allowed = PURE_NEEDS | KERNELS.get(path.name, set())
            assert foreign <= allowed, f"{path} imports {sorted(foreign - allowed)}"


@pytest.mark.parametrize("room", ORDER)
def test_a_config_imports_configs_only(room: str) -> None:
    path = ROOT / "relic" / room / "config.py"
    if path.exists():
        foreign = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"relic"}
        assert not foreign, f"{path} imports {sorted(foreign)}; a config needs the standard library only"
        assert all(name.split(".")[1] == "config" for name in ours(path))


def test_rooms_have_nothing_but_a_docstring_in_init() -> None:
    for path in (ROOT / "relic").glob("*/__init__.py"):
        assert len(ast.parse(path.read_text()).body) <= 1, f"{path} holds more than a docstring"


def test_every_room_and_root_file_is_in_the_table() -> None:
    known = {*ORDER, *TORCH_FREE, "__init__", "__main__"}
    assert {room_of(path) for path in FILES} <= known


def test_components_hold_no_python_and_workflows_import_only_the_pipeline() -> None:
    assert not list((ROOT / "components").rglob("*.py"))
    for path in (ROOT / "workflows").glob("*.py"):
        assert all(name.startswith("relic.pipeline.") for name in imported(path))


def test_recipes_steps_and_pipeline_load_no_torch() -> None:
    script = (
        "import sys, relic.__main__, relic.recipes, relic.steps, relic.tracking, relic.pipeline.local\n"
        "heavy = {'torch', 'numpy', 'mlflow', 'boto3', 'fastapi', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_launch_loads_no_torch() -> None:
    script = (
        "import sys, relic.launch.promote, relic.launch.torchrun, relic.launch.ray_train, "
        "relic.launch.pytorchjob\n"
        "assert not {'torch', 'ray', 'mlflow', 'fastapi', 'kubernetes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_guides_are_merged_and_name_tests_that_there_are() -> None:
    for guide in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in guide.read_text().splitlines():
            assert not line.startswith(("<<<<<<<", "=======", ">>>>>>>")), f"{guide} holds an unfinished merge"
            source = ""
            for file, test in re.findall(r"`(test_\w+\.py)`|`(test_\w+)`", line):
                source = (ROOT / "tests" / file).read_text() if file else source
                assert not test or f"def {test}(" in source, f"{guide} names {test}, which is not there"
