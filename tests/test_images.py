"""The images' Dockerfiles: what pods may rely on, and that the images have what runs in them. Nothing is built."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted([*ROOT.glob("images/*/Dockerfile"), ROOT / "tests" / "cluster" / "services" / "Dockerfile"])
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What runs in the control image: all that the command loads without torch, a deploy, and what talks to a cluster.
CONTROL = ["*.py", "pipeline/*.py", "launch/*.py", "*/config.py"]
ELSEWHERE = {"torch", "torchx", "ray"}  # of launchers that the control image is not for
TRAINING = {"deepspeed", "hera", "kubeflow-training", "kubernetes", "mlflow", "mlflow-skinny", "ray", "torchx"}
TRAINING |= {"av", "matplotlib", "peft", "vizdoom"}
PACKAGES = {"PIL": "pillow", "kubeflow": "kubeflow-training", "mlflow": "mlflow-skinny", "yaml": "pyyaml"}
PACKAGES |= {"prometheus_client": "prometheus-client"}
PACKAGES |= {"botocore": "boto3", "urllib3": "kubernetes"}  # which come with these

each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)


@each_dockerfile
def test_an_image_stands_on_a_base_that_can_be_replaced_and_runs_as_user_1000(path):
    text = path.read_text()
    stands_on = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=?(.*)$", text, re.MULTILINE))
    assert set(stands_on) == {f"${{{name}}}" for name in bases}
    assert all(re.search(r":\S+@sha256:[0-9a-f]{64}$", base) for name, base in bases.items() if name != "TORCH_IMAGE")
    assert "latest" not in text
    assert text.endswith("\nUSER 1000\n")


@each_dockerfile
def test_what_pip_installs_is_pinned_and_pips_settings_are_not_kept(path):
    runs = re.findall(r"^RUN (?:.*\\\n)*.*", path.read_text(), re.MULTILINE)
    pips = [run for run in runs if re.search(r"pip install|\$install", run)]
    assert pips
    for run in pips:
        assert "--no-cache-dir" in run
        assert "id=pip,target=/etc/pip.conf" in run
        assert "id=ca,target=/run/ca.pem" in run
        assert re.search("--constraint|--no-deps|ninja", run)  # ninja: what compiles flash-attn, and stays behind


def extras_of(name: str) -> str:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", (ROOT / "images" / name / "Dockerfile").read_text(), re.MULTILINE)
    return extras


def required(extras: str) -> list[str]:
    """What an image of these extras is told to install."""
    command = [sys.executable, str(ROOT / "images" / "requirements"), str(ROOT / "pyproject.toml"), extras]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("name", ["train", "serve"])
def test_the_extras_of_an_image_are_those_of_pyproject(name):
    extras = extras_of(name)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert {need for extra in extras.split(",") for need in EXTRAS[extra]} < set(required(extras))


def test_the_serve_image_has_what_serves_and_routes_and_nothing_that_trains():
    has = with_what_they_need(required(extras_of("serve")))
    loaded = {top for path in (ROOT / "relic" / "serve").glob("*.py") for top in imports(path)} - {"relic"}
    assert {PACKAGES.get(top, top) for top in loaded} <= has
    assert not TRAINING & has


def with_what_they_need(lines: Iterable[str]) -> set[str]:
    """The names of packages and of all that comes with them, as those that are installed here say."""
    found: set[str] = set()
    left = [Requirement(line) for line in lines]
    while left:
        one = left.pop()
        if (one.marker is None or one.marker.evaluate({"extra": ""})) and one.name.lower() not in found:
            found.add(one.name.lower())
            left += [Requirement(line) for line in metadata.requires(one.name) or ()]
    return found


def test_the_control_image_has_what_runs_in_it():
    listed = set((ROOT / "images" / "control" / "requirements.txt").read_text().split())
    files = {path for pattern in CONTROL for path in (ROOT / "relic").glob(pattern)}
    loaded = {top for path in files for top in imports(path)} - ELSEWHERE - {"relic"}
    assert {PACKAGES.get(top, top) for top in loaded} <= listed
    assert "torch" not in listed


def imports(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it, of other people's."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.fixture
def built(tmp_path):
    """Runs images/build with a docker that only writes down what it is told."""
    docker, log = tmp_path / "docker", tmp_path / "log"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    docker.chmod(0o755)

    def run(*arguments, **variables):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUILDER": "docker", **variables}
        said = subprocess.run([ROOT / "images" / "build", *arguments], env=environment, capture_output=True, text=True)
        return said, log.read_text().splitlines() if log.is_file() else []

    return run


def test_torch_is_built_once_for_the_images_on_it(built):
    said, lines = built("--prefix", "registry.example.com/relic", "--tag", "1", "train", "serve", BASE_IMAGE="local:1")
    assert said.returncode == 0
    names = [re.search(r"--tag registry.example.com/relic/(\w+):1 ", line)[1] for line in lines]
    assert names == ["torch", "train", "serve"]
    assert all("--build-arg BASE_IMAGE=local:1" in line for line in lines)
    assert all("TORCH_IMAGE=registry.example.com/relic/torch:1" in line for line in lines[1:])


def test_the_gpu_variant_has_flash_attn_and_all_extras(built):
    _, lines = built("--variant", "gpu", "train")
    assert ["VARIANT=gpu" in lines[0], "TORCH_INDEX" in lines[0]] == [True, False]
    assert re.search(r"TORCH_IMAGE=\S+/torch:test .*--tag \S+/flash-attn:test", lines[1])
    assert "TORCH_IMAGE=localhost/relic/flash-attn:test" in lines[2]
    assert not any("EXTRAS" in line for line in lines)


@pytest.mark.parametrize("arguments", [("trian",), ("--variant", "tpu"), ("--tags", "1")])
def test_a_mistake_in_a_build_is_one_sentence_before_anything_is_built(built, arguments):
    said, lines = built(*arguments)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "allowed are" in said.stderr
    assert not lines
