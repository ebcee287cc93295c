"""The command `relic`: a subcommand for every step, the pipeline that runs them, the server and a video of a walk.

Loads no torch."""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from relic import call, recipes, steps
from relic.endings import LESS_MEMORY, last_words, out_of_memory, outcome
from relic.mistakes import UserError, allowed
from relic.options import about, parse, value_of

OTHERS = {
    "pipeline": "the whole graph, here or on a cluster: relic pipeline run --recipe tiny --store DIR --out DIR",
    "cluster": "say what a Kubernetes cluster lacks for a run: relic cluster check --cluster FILE",
    "weights": "weights in, out, merged, of a checkpoint: relic weights import|export|merge|checkpoint DIR --out DIR",
    "plan": "say what each stage of a recipe takes on each GPU: relic plan --recipe relic_14b --gpus 32",
    "launch": "run a step in several processes: relic launch --processes 8 -- relic teacher --recipe wan_1b",
    "doctor": "check devices, network, memory, store and MLflow before a run; under torchrun, of all its processes",
    "serve": "open the page where people walk through the world of a run, or of an export",
    "router": "one address for several servers: relic router --replicas NAME:PORT,NAME:PORT --token-secret FILE",
    "play": "walk through a server's world by a script or this terminal: relic play ADDRESS --script 'w 2s' --out FILE",
    "generate": "make a video from one picture and a script of actions, by the student or the teacher",
}


def main(
    argv: Sequence[str] | None = None,
    table: Mapping[str, steps.Step] = steps.STEPS,
    named: Any = recipes.named,
) -> int:
    """Run a command and return its exit code, of the table in `relic.verdict`; a failure is one sentence."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview(table))
        return 0 if args else 2
    command, rest = args[0], args[1:]
    with outcome(command) as result:
        if command in table:
            step(table[command], rest, named)
        elif command == "serve":
            serve(rest)
        elif command == "router":
            router(rest)
        elif command == "play":
            play(rest)
        elif command == "weights":
            pretrained_weights(rest)
        elif command == "generate":
            generate(rest)
        elif command == "plan":
            plan(rest, named)
        elif command == "doctor":
            result["code"] = doctor(rest)
        elif command == "pipeline":
            result["code"] = pipeline(rest, table, named)
        elif command == "cluster":
            from relic.pipeline import check

            result["code"] = check.main(rest)
        elif command == "launch":
            result["code"] = launch(rest, table, named)
        else:
            raise UserError(f"there is no command {command!r}; {allowed(command, [*table, *OTHERS])}")
    return result["code"]


def overview(table: Mapping[str, steps.Step]) -> str:
    lines = {**{name: found.about for name, found in table.items()}, **OTHERS}
    rows = "\n".join(f"  {name:<14}{about}" for name, about in lines.items())
    return f"usage: relic COMMAND [OPTIONS]   (relic COMMAND --help lists the options)\n\n{rows}"


# Commands


def step(found: steps.Step, args: list[str], named: Any) -> None:
    """`relic STEP --recipe NAME --store URI [--INPUT URI…] [--config.DIAL VALUE…]`"""
    asked = call.read(found, args, named)
    try:
        uri = asked.perform()
    except Exception as error:
        if found.trains and out_of_memory(error):
            raise MemoryError(less_memory(asked)) from error
        raise
    if steps.speaks_for_all():
        asked.say(uri)


def less_memory(asked: call.Call) -> str:
    """What the planner would change of a training that did not fit."""
    from relic.parallel import mesh
    from relic.train import planner
    from relic.train.config import Machine

    found, dials, memory = asked.step, asked.parallel, mesh.gpu_memory()
    if found.name not in planner.STAGES or not memory:
        return LESS_MEMORY
    machine = Machine(
        gpus=steps.num_processes(), gpu_memory=memory, zero=dials.zero, offload=dials.offload,
        sequence_parallel=dials.sequence, checkpointing=dials.checkpointing, samples=dials.samples,
    )  # fmt: skip
    changed = replace(asked.recipe, **{found.config: asked.config})
    return f"as `relic plan` has it, {planner.instead(changed, found.name, machine)}"


def serve(args: list[str]) -> None:
    from relic.serve.config import Serve

    steps.die_with_parent()
    config = parse(Serve, args, "relic serve", OTHERS["serve"])
    from relic.serve.app import main as run

    run(config)


def router(args: list[str]) -> None:
    from relic.serve.config import Router

    steps.die_with_parent()
    config = parse(Router, args, "relic router", OTHERS["router"])
    from relic.serve.router import main as run

    run(config)


def play(args: list[str]) -> None:
    """`relic play ADDRESS [--script SCRIPT] [--out FILE.mp4|DIR]`"""
    from relic.serve.config import Play

    if args and not args[0].startswith("-"):
        args = ["--address", *args]
    config = parse(Play, args, "relic play", OTHERS["play"])
    from relic.serve import play as walk

    def recording(path: Path, fps: float) -> AbstractContextManager[Callable[..., None]]:
        from relic.data import video  # whose extra only a video needs

        return video.recording(path, fps=fps)

    print(walk.main(config, recording), flush=True)


def pretrained_weights(args: list[str]) -> None:
    """`relic weights import DIR_OR_FILES --out DIR`, `export DIR --out DIR`, `merge DIR --adapter DIR --out DIR`,
    `checkpoint DIR --part student/ema --out DIR`."""
    from relic.model.config import ExportWeights, ImportWeights
    from relic.train.config import ExportCheckpoint, MergeAdapter

    kinds = {"import": ImportWeights, "export": ExportWeights, "merge": MergeAdapter, "checkpoint": ExportCheckpoint}
    if args and args[0] in ("-h", "--help"):
        print(f"usage: relic weights {'|'.join(kinds)} [OPTIONS]   (relic weights import --help lists the options)")
        print(f"\n{OTHERS['weights']}")
        return
    if not args or args[0] not in kinds:
        given_first = args[0] if args else "nothing"
        raise UserError(f"'weights' is followed by {given_first!r}; allowed are {', '.join(kinds)}")
    action, rest = args[0], args[1:]
    given = list(itertools.takewhile(lambda arg: not arg.startswith("-"), rest))
    source = ["--source", *given] if given else []
    if not {"-h", "--help"} & set(rest) and not (source or "--source" in rest):
        raise UserError(f"relic weights {action} needs weights: relic weights {action} DIR --out DIR")
    options = parse(kinds[action], source + rest[len(given) :], f"relic weights {action}", OTHERS["weights"])
    from relic.model import wan
    from relic.train import lora, saved

    files = [Path(name) for name in options.source]
    if action == "import":
        wan.import_weights(
            files, Path(options.out), heads=options.heads, control_width=options.control_width, pickle=options.pickle
        )
    elif action == "export":
        wan.export_weights(files[0], Path(options.out), shard_bytes=round(options.shard_gb * 1e9))
    elif action == "checkpoint":
        saved.export(options)
    else:
        lora.merge(files[0], Path(options.adapter), Path(options.out))
    print(options.out, flush=True)


def generate(args: list[str]) -> None:
    """`relic generate --image FILE --actions SCRIPT --out FILE`, and the model by --run, --export or --weights."""
    from relic.serve.config import Film

    source, kind = None, Film
    run, export = (value_of(args, option, "") for option in ("--run", "--export"))
    if run or export:
        from relic.serve import film

        source = film.find(run, export)
        kind = film.options(source)
    config = parse(kind, args, "relic generate", OTHERS["generate"])
    from relic.data import video
    from relic.serve import film

    frames = film.main(config, source)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    video.write(Path(config.out), frames, fps=config.fps)
    print(f"{config.out}: {len(frames)} frames, {len(frames) / config.fps:.1f} s")


def doctor(args: list[str]) -> int:
    from relic.parallel.config import Doctor

    cfg = parse(Doctor, args, "relic doctor", OTHERS["doctor"])
    from relic.launch import doctor as around
    from relic.parallel import doctor as within

    findings, speaks = within.examined(cfg, around.examined(cfg))
    if speaks:
        print(around.report(findings, as_json=cfg.json), flush=True)
    return 0 if around.fit(findings) else 1


def plan(args: list[str], named: Any) -> None:
    from relic.train import planner
    from relic.train.config import Machine

    recipe = named(value_of(args, "--recipe", "tiny"))
    options = parse(plan_options(recipe.parallel), args, "relic plan", OTHERS["plan"])
    machine = Machine(
        gpus=options.gpus, gpu_memory=planner.bytes_of(options.gpu_memory), checkpointing=options.checkpointing,
        sequence_parallel=options.sequence_parallel, samples=options.samples, zero=options.zero,
        offload=options.offload,
    )  # fmt: skip
    print(planner.report(recipe, recipe.name, machine, options.stage))


def plan_options(dials: Any) -> type:
    """The options of `relic plan`, with a recipe's dials of a training on several processes as defaults."""
    described: list[tuple[str, type, Any, str]] = [
        ("recipe", str, "tiny", "the recipe that is planned"),
        ("gpus", int, 1, "GPUs that train together"),
        (
            "zero",
            int,
            dials.zero,
            "what they share: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too",
        ),
        ("offload", str, dials.offload, "of what is shared, to the host's memory: none, optimizer, or all with ZeRO 3"),
        ("gpu_memory", str, "80GB", "memory of each, in GB or GiB"),
        ("stage", str, "", "teacher, trajectories, student-init, distill or serve; empty: all"),
        ("sequence_parallel", int, dials.sequence, "GPUs that share the tokens and heads of their samples"),
        (
            "samples",
            int,
            dials.samples,
            "samples at once in a group of GPUs, the rest by accumulation; 0: its part of the batch",
        ),
        (
            "checkpointing",
            bool,
            dials.checkpointing,
            "blocks keep their input only and are computed again in the backward",
        ),
    ]
    return make_dataclass(
        "Plan", [(name, Annotated[kind, about(text)], value) for name, kind, value, text in described]
    )


def pipeline(args: list[str], table: Mapping[str, steps.Step], named: Any) -> int:
    from relic.pipeline import commands

    return commands.main(args, table, named, root=Path(__file__).parents[1])


def launch(args: list[str], table: Mapping[str, steps.Step], named: Any) -> int:
    """`relic launch [OPTIONS] -- relic STEP [OPTIONS]`"""
    from relic.launch.config import Launch

    steps.die_with_parent()
    at = args.index("--") if "--" in args else len(args)
    given, defaults = args[at + 1 :], None
    launched = [*(name for name, found in table.items() if found.trains), "doctor"]
    if on_cluster := value_of(args[:at], "--backend", "") == "pytorchjob":
        from relic.launch import pytorchjob

        defaults, launched = pytorchjob.defaults(value_of(args[:at], "--pool", "")), list(table)
    options = parse(Launch, args[:at], "relic launch", OTHERS["launch"], defaults)
    if len(given) < 2 or given[0] != "relic" or given[1] not in launched:
        said = " ".join(given[:2]) or "nothing"
        raise UserError(
            f"what is launched is {said!r}; allowed is -- relic COMMAND [OPTIONS], of {', '.join(launched)}"
        )
    if on_cluster:
        ended = pytorchjob.run(options, call.read(table[given[1]], given[2:], named), given[1:])
    elif options.backend == "ray":
        from relic.__main__ import main as command  # by this name the workers find it too
        from relic.launch import ray_train

        ended = ray_train.run(options, command, given[1:])
    else:
        from relic.launch import torchrun

        ended = torchrun.run(options, ["-m", "relic", *given[1:]])
    if ended.text:
        last_words(ended.text)
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
