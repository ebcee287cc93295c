"""The steps of the pipeline: one table, and what every step does around its function. Loads no torch.

A step computes its key, ends at once when the artifact is there, and else runs `module:function` in a working folder
that outlives a kill, writes the manifest and says the artifact's URI.
"""

import contextlib
import functools
import importlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from relic import artifacts, stores, tracking
from relic.mistakes import UserError
from relic.verdict import Stopped

PARENT_PROCESS = "RELIC_PARENT_PROCESS"  # id of the runner whose child this process is


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    function: str  # "module:function"
    about: str  # one line of help
    version: int = 1  # raised when the same parameters give something else
    config: str = ""  # attribute of the recipe
    inputs: tuple[str, ...] = ()
    fan_out: bool = False
    trains: bool = False  # in one process or many: the function takes their mesh
    ray: bool = False  # whether its work can go to workers of Ray, which changes nothing in what it makes
    by_uri: bool = False  # whether the function is given its inputs' URIs, not their folders: it reads little of them
    holds: str = ""  # "module:function" that says whether what it did outside the store is still so; empty: nothing
    files: tuple[str, ...] = ()  # fields of the config that name files outside the store: the key counts their content


TABLE = (
    Step(name="curate", function="relic.data.curate:main", config="curate", fan_out=True, ray=True,
         files=("folder",), about="record or import clips, filter, caption and annotate them"),
    Step(name="join", function="relic.data.join:main", inputs=("parts",),
         about="one index over the parts of a fan-out"),
    Step(name="codec", function="relic.train.codec:main", config="codec", trains=True, inputs=("clips",),
         files=("start", "pretrained"), about="train the small video codec"),
    Step(name="pose-net", function="relic.train.pose_net:main", config="pose_net", trains=True,
         inputs=("clips",),
         about="train the estimator of the camera's motion"),
    Step(name="shard", function="relic.data.shard:main", config="shard", inputs=("clips", "codec"), fan_out=True,
         ray=True, files=("text_encoder",), about="encode clips and palindromes into shards of latents"),
    Step(name="teacher", function="relic.train.teacher:main", config="teacher", trains=True, inputs=("samples",),
         files=("start",), about="train the bidirectional teacher"),
    Step(name="trajectories", function="relic.train.trajectories:main", config="trajectories", fan_out=True,
         inputs=("teacher", "samples"), about="solve the teacher's ODE for the student to start from"),
    Step(name="student-init", function="relic.train.student_init:main", config="student_init",
         trains=True, inputs=("teacher", "samples", "trajectories"),
         about="make the causal four-step student of the teacher"),
    Step(name="distill", function="relic.train.distill:main", config="distill",
         trains=True, inputs=("teacher", "student", "samples"),
         about="distil the student on its own videos, by replayed DMD"),
    Step(name="evaluate", function="relic.evaluate.report:main", config="evaluate", version=3,
         inputs=("clips", "codec", "estimator", "teacher", "student", "distilled"), files=("base", "text_encoder"),
         about="measure the models and write the report"),
    Step(name="export", function="relic.serve.export:main", config="export", inputs=("student", "codec", "evaluation"),
         about="put the student, in FP8, into a folder that a server needs nothing beside"),
    Step(name="deploy", function="relic.launch.promote:main", config="deploy", inputs=("export", "evaluation"),
         by_uri=True, holds="relic.launch.promote:holds", files=("text_encoder",),
         about="pass the gate, register the export, play a session against it and give it the alias"),
)  # fmt: skip
STEPS: dict[str, Step] = {step.name: step for step in TABLE}


def parameters(step: Step, config: Any, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """All that a step's outcome depends on beside its inputs."""
    values = {} if config is None else asdict(config)
    values.pop("checkpoint", None)  # how often a training's state is saved, and where, changes nothing that is made
    if "loader" in values:  # nor does how samples are fetched, only which
        values["loader"] = {name: values["loader"][name] for name in ("mixture", "max_weight", "damaged")}
    for field in step.files:
        if values.get(field):
            values[f"{field}_sha256"] = content(values[field])
    return {**values, **({"part": part, "parts": parts} if step.fan_out else {})}


@functools.cache
def content(name: str) -> str:
    """A digest of the files of a folder outside the store, or of start weights that ship with relic."""
    shipped = Path(__file__).parent / "weights" / name
    folder = shipped if shipped.is_dir() else Path(name)
    if not folder.exists():
        raise UserError(f"{name!r} does not exist; give a folder, or start weights of {shipped.parents[1]}")
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    return artifacts.digest([[path.relative_to(folder).as_posix(), artifacts.sha256(path)] for path in paths])


def key(step: Step, values: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> str:
    return artifacts.key(step.name, step.version, values, inputs)


def perform(
    step: Step, config: Any, *, store: str, inputs: Mapping[str, list[str]],
    part: int = 0, parts: int = 1, ray: str = "", parallel: Any = None,
) -> str:  # fmt: skip
    """Make a step's artifact, or find it finished. Returns its URI.

    `ray` is the address of a Ray cluster whose workers do the step's work; empty: this process does. `parallel` says
    how a training is spread over the processes that torchrun started, which all call this; the first one finishes it.
    Neither is part of the key."""
    die_with_parent()
    if step.fan_out and not 0 <= part < parts:
        raise UserError(f"part is {part} of {parts}; it must be 0 to {parts - 1}")
    place = stores.open_store(store)
    values = parameters(step, config, part=part, parts=parts)
    name = key(step, values, inputs)
    span = {"part": part, "parts": parts} if step.fan_out else {}
    work = partial(
        make, step, config, inputs, {**span, **({"ray": ray} if step.ray else {})}, place=place,
        facts={"step": step.name, "version": step.version, "key": name, "parameters": values, "inputs": dict(inputs)},
    )  # fmt: skip
    with contextlib.nullcontext() if step.trains else ended_by_sigterm():
        if num_processes() > 1:
            together(step, name, place, work, parallel)
        elif place.manifest(step.name, name) is None:
            with place.local.working(step.name, name) as out:
                if place.local.manifest(step.name, name) is None:
                    work(out=out, mesh=mesh_of(parallel) if step.trains else None)
                place.publish(step.name, name)
        elif step.holds and not function_at(step.holds)(config, **inputs, store=place.local.root):
            again(step, config, inputs, out=place.local.partial(step.name, name).with_suffix(".again"))
    return place.uri(step.name, name)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped`: a container's first process does not end by itself. Trainings save first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would come into the clearing up
        raise Stopped("stopped by SIGTERM; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def again(step: Step, config: Any, inputs: Mapping[str, list[str]], *, out: Path) -> None:
    """Do once more what a finished step did outside the store, where another run has undone it. Its artifact stays."""
    print(f"{step.name} is finished, but what it did does not hold any more: it is done again", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    function_at(step.function)(config, **inputs, out=out, run=tracking.Run(out))
    shutil.rmtree(out)


def together(step: Step, name: str, place: stores.Store, work: Callable[..., None], parallel: Any) -> None:
    """One of several processes makes an artifact. The first one holds the lock, and says whether there is work."""
    if not step.trains:
        raise UserError(f"{step.name} runs in one process and was started in {num_processes()}; allowed are trainings")
    mesh = mesh_of(parallel)
    if not mesh.is_first:
        if mesh.said_by_first(None):
            out = place.local.partial(step.name, name)
            out.mkdir(parents=True, exist_ok=True)  # on another node a folder of its own
            work(out=out, mesh=mesh)
    elif place.manifest(step.name, name) is not None:
        mesh.said_by_first(False)
    else:
        with place.local.working(step.name, name) as out:
            unfinished = place.local.manifest(step.name, name) is None
            mesh.said_by_first(unfinished)
            if unfinished:
                work(out=out, mesh=mesh)
            mesh.leave()  # the others need not wait for the upload
            place.publish(step.name, name)
        return
    mesh.leave()


def make(
    step: Step, config: Any, inputs: Mapping[str, list[str]], options: dict[str, Any], *,
    out: Path, place: stores.Store, facts: dict[str, Any], mesh: Any = None,
) -> None:  # fmt: skip
    """Call the step's function in its working folder and finish the artifact."""
    local, name = place.local, facts["key"]
    given: Mapping[str, Any] = inputs if step.by_uri else fetched(inputs, mesh)
    if mesh is not None:
        options = {**options, "mesh": mesh}
    if mesh is not None and not mesh.is_first:
        function_at(step.function)(config, **given, **options, out=out, run=tracking.Run.silent())
        return
    watch = artifacts.Stopwatch(out)
    run = tracking.Run(out, on_progress=watch.tick)
    run.parameters({**facts["parameters"], "key": name})
    title = f"{step.name}-{options['part']}" if step.fan_out else step.name
    shipper = None
    if not tracking.shipped_by_another():
        shipper = tracking.Shipper(tracking.default_uri(local.root), parent=os.environ.get(tracking.PARENT, ""))
        shipper.watch(
            title,
            lambda: folder if (folder := local.folder(step.name, name)).is_dir() else out,
            uri=place.uri(step.name, name),
        )
    succeeded = False
    try:
        summary = function_at(step.function)(config, **given, **options, out=out, run=run)
        figures = {k: v for k, v in (summary or {}).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        run.log({**figures, "seconds": watch.seconds}, step=0)
        local.commit(step.name, name, {**facts, "summary": summary or {}, "seconds": round(watch.seconds, 3)})
        succeeded = True
    except Exception as error:
        error.add_note(str(out))  # where it happened, for who has to free a disk
        raise
    finally:
        if not succeeded:
            watch.save()
        if shipper is not None:
            shipper.finish(title, succeeded=succeeded)
            shipper.close()


def fetched(inputs: Mapping[str, list[str]], mesh: Any) -> dict[str, list[Path]]:
    """The inputs' local folders; of several processes on a machine the first one fetches and verifies them."""
    if mesh is not None and not is_first_here():
        mesh.wait()
    folders = {name: [stores.fetch(uri) for uri in uris] for name, uris in inputs.items()}
    if mesh is not None and is_first_here():
        mesh.wait()
    return folders


def num_processes() -> int:
    """How many torchrun, or Ray Train, has started for one training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_here() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def speaks_for_all() -> bool:
    """Whether this is the process whose word a person hears."""
    return os.environ.get("RANK", "0") == "0"


def mesh_of(parallel: Any) -> Any:
    """The processes of a training. Loads torch."""
    return importlib.import_module("relic.parallel.mesh").joined(parallel)


def function_at(place: str) -> Any:
    """The function of "module:function"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def die_with_parent() -> None:
    """Ask Linux to end this process when the runner that started it dies, even by SIGKILL: two never work at once."""
    parent = os.environ.get(PARENT_PROCESS)
    if not parent:
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
