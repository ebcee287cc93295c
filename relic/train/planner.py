"""`relic plan`: what every stage of a recipe takes on each GPU and what it sends, whether it fits, and what to change
if it does not.

The figures come from train/footprint.py, shares.py and traffic.py, so they follow the code as it is; the dials are
those of parallel/config.py. benchmarks/scaling.py measures the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from relic.data.config import Curate
from relic.generate.config import Rollout
from relic.memory import masks
from relic.mistakes import UserError, allowed
from relic.model.config import Codec, Transformer
from relic.train import footprint, passes, traffic
from relic.train.config import CodecTraining, Distill, Machine, Stage, StudentInit, Teacher, Trajectories
from relic.train.footprint import BFLOAT16, FLOAT, Pass
from relic.train.passes import Passes
from relic.train.shares import Need, backward, copies, frozen, pieces, samples_of, trained

HEAD = ("samples", "weights", "gradients", "optimiser", "EMA", "activations", "KV memory", "codec", "sum", "sent",
        "fits")  # fmt: skip
WIDTHS = [max(8, len(word) + 2) for word in HEAD]  # characters of the columns
STAGES = ("teacher", "trajectories", "student-init", "distill", "serve")
PATCH = 8  # pixels a side of a latent's cell
ASSUMED = """Assumed: float32 weights, gradients, moments and average, cut by ZeRO {cut}; bfloat16 autocast, whose
copies of the weights count with the activations; the teacher of one length at a time, frozen; trajectories and a walk
on one GPU's own weights, the walk's in FP8. The sum is of a stage's fullest moment: gradients come as activations go.
`sent` is what a GPU sends in a step, as a ring does. A GPU is full at {share:.0%}: CUDA takes the rest."""


class Recipe(Protocol):
    @property
    def curate(self) -> Curate: ...
    @property
    def codec(self) -> CodecTraining: ...
    @property
    def teacher(self) -> Teacher: ...
    @property
    def trajectories(self) -> Trajectories: ...
    @property
    def student_init(self) -> StudentInit: ...
    @property
    def distill(self) -> Distill: ...


# Stages


def needs(recipe: Recipe, machine: Machine) -> Iterator[Need]:
    """What each stage of a recipe takes, in the order that they run in."""
    rows, columns = grid(recipe)
    yield from (teacher(recipe.teacher, stage, rows, columns, machine) for stage in recipe.teacher.stages)
    yield trajectories(recipe.teacher.model, recipe.trajectories, rows, columns, machine)
    yield student_init(recipe.teacher.model, recipe.student_init, rows, columns, machine)
    for stage in recipe.distill.stages:
        yield from distill(recipe.teacher.model, recipe.distill, stage, rows, columns, machine)
    yield serve(recipe.teacher.model, recipe.codec.model, recipe.distill.rollout, rows, columns, machine)


def grid(recipe: Recipe) -> tuple[int, int]:
    """Rows and columns of tokens of a latent."""
    curate, patch = recipe.curate, recipe.teacher.model.patch
    height, width = {
        "doom": (curate.doom.height, curate.doom.width),
        "rooms": (curate.rooms.height, curate.rooms.width),
        "folder": (curate.height, curate.width),
    }[curate.source]
    return height // PATCH // patch[1], width // PATCH // patch[2]


def teacher(cfg: Teacher, stage: Stage, rows: int, columns: int, machine: Machine) -> Need:
    samples = samples_of(stage.batch, machine)
    graph = Pass(latents=stage.latents, rows=rows, columns=columns, batch=samples, low=machine.low)
    made = [Passes(replace(graph, batch=piece), graph=True) for piece in pieces(stage.batch, machine)]
    states = trained(cfg.model, cfg.optimizer, machine)
    return replace(
        backward(states, cfg.model, graph, machine, first=len(made) == 1),
        stage=f"teacher, {stage.latents} latents", samples=samples, sent=traffic.step(cfg.model, machine, made),
    )  # fmt: skip


def trajectories(model: Transformer, cfg: Trajectories, rows: int, columns: int, machine: Machine) -> Need:
    """A part's batch, without a graph, on one GPU: the parts share nothing."""
    graph = Pass(latents=cfg.latents, rows=rows, columns=columns, batch=cfg.batch, low=machine.low)
    return Need(
        stage=f"trajectories, {cfg.latents} latents",
        samples=cfg.batch,
        weights=frozen(model, replace(machine, zero=0, offload="none")),
        activations=footprint.without_graph(model, graph, remember=False),
    )


def student_init(model: Transformer, cfg: StudentInit, rows: int, columns: int, machine: Machine) -> Need:
    samples, chunk = samples_of(cfg.batch, machine), cfg.rollout.chunk
    segments = masks.hybrid(cfg.latents, chunk, cfg.num_noisy, cfg.rollout.memory)
    graph = Pass(
        latents=cfg.latents, rows=rows, columns=columns, batch=samples, low=machine.low, segments=segments
    )  # fmt: skip
    states = trained(model, cfg.optimizer, machine)
    others = {"ode": 0, "causal_ode": cfg.ode_steps, "consistency": 2}[cfg.initialisation]  # passes without a graph
    made = [one for piece in pieces(cfg.batch, machine) for one in
            (Passes(replace(graph, batch=piece), graph=True), Passes(replace(graph, batch=piece), others))]  # fmt: skip
    return replace(
        backward(states, model, graph, machine, first=len(pieces(cfg.batch, machine)) == 1),
        stage=f"student-init, {cfg.latents} latents", samples=samples, sent=traffic.step(model, machine, made),
        weights=states.weights + (frozen(model, machine) if others else 0),  # the causal model of many steps
    )  # fmt: skip


def distill(
    model: Transformer, cfg: Distill, stage: Stage, rows: int, columns: int, machine: Machine, *, exits: float = 0
) -> Iterator[Need]:
    """The two fullest moments: the critic's graph of a whole video, and the replay of its last chunk.

    What is sent is that of the whole step, whose chunks take `exits` passes until they are clean; 0: the mean."""
    samples, memory = samples_of(stage.batch, machine), cfg.rollout.memory
    student, critic = trained(model, cfg.optimizer, machine), trained(model, cfg.critic_optimizer, machine)
    video = Pass(latents=stage.latents, rows=rows, columns=columns, batch=samples, low=machine.low)
    exits = exits or (1 + len(cfg.rollout.timesteps)) / 2
    made = [one for piece in pieces(stage.batch, machine)
            for one in passes.distill(cfg, replace(video, batch=piece), exits=exits)]  # fmt: skip
    states = replace(
        student,
        weights=student.weights + critic.weights + frozen(model, machine),
        # those of one model are gone before the other's come, unless they have a place of their own
        gradients=student.gradients + (critic.gradients if machine.cut == 3 else 0),
        optimizer=student.optimizer + critic.optimizer,
        samples=samples,
        sent=traffic.step(model, machine, made, updates=1 + cfg.critic_steps),
    )
    is_first = len(pieces(stage.batch, machine)) == 1
    yield replace(backward(states, model, video, machine, first=is_first),
                  stage=f"distill, {stage.latents} latents, critic")  # fmt: skip
    before = min(stage.latents, memory.capacity) - cfg.rollout.chunk
    chunk = replace(video, latents=cfg.rollout.chunk, past=memory.tokens(rows, columns, before))
    graph = footprint.activations(model, chunk, checkpointing=machine.checkpointing)
    remembered = footprint.memory_bytes(model, memory, rows=rows, columns=columns, batch=samples)
    remembered += footprint.context_bytes(model, memory, chunk)
    reading = footprint.walking(model, memory, chunk, graph)
    yield replace(
        states, stage=f"distill, {stage.latents} latents, replay",
        memory=remembered / machine.sequence_parallel,  # that of the walk that is walked again; the first one's is gone
        activations=reading / machine.sequence_parallel + copies(model, machine),
    )  # fmt: skip


def serve(model: Transformer, codec: Codec, cfg: Rollout, rows: int, columns: int, machine: Machine) -> Need:
    """One walk at the capacity of its memory, on `sequence_parallel` GPUs that each hold all the weights."""
    past = cfg.memory.tokens(rows, columns, cfg.memory.capacity - cfg.chunk)
    chunk = Pass(latents=cfg.chunk, rows=rows, columns=columns, past=past)
    remembered = footprint.memory_bytes(model, cfg.memory, rows=rows, columns=columns)
    remembered += footprint.context_bytes(model, cfg.memory, chunk)
    reading = footprint.walking(model, cfg.memory, chunk, footprint.without_graph(model, chunk))
    pixels = rows * model.patch[1] * PATCH * columns * model.patch[2] * PATCH
    widest = codec.decoder_widths[2] + codec.decoder_widths[3]  # of a convolution at the frames' full size
    frames = 4 * cfg.chunk
    return Need(
        stage="serve",
        weights=footprint.served_bytes(model),
        memory=remembered / machine.sequence_parallel,
        activations=reading / machine.sequence_parallel,
        codec=FLOAT * footprint.codec_parameters(codec) + BFLOAT16 * frames * pixels * widest,
    )


# Advice


def fits(need: Need, machine: Machine) -> bool:
    return need.total <= machine.usable


def need_of(recipe: Recipe, stage: str, machine: Machine) -> Need:
    return next(need for need in needs(recipe, machine) if need.stage == stage)


def remedy(recipe: Recipe, stage: str, machine: Machine) -> Machine | None:
    """The least change with which a stage fits: fewer samples, then checkpointing, then sharing, then more GPUs."""
    heads = recipe.teacher.model.heads
    for gpus in (machine.gpus * 2**power for power in range(7)):
        for parallel in (n for n in range(machine.sequence_parallel, gpus + 1) if gpus % n == heads % n == 0):
            for checkpointing in sorted({machine.checkpointing, True}):
                for samples in (machine.samples, 4, 2, 1):
                    changed = replace(
                        machine, gpus=gpus, sequence_parallel=parallel, checkpointing=checkpointing, samples=samples
                    )
                    if fits(need_of(recipe, stage, changed), changed):
                        return changed
    return None


def advice(recipe: Recipe, stage: str, machine: Machine) -> str:
    changed = remedy(recipe, stage, machine)
    if changed is None:
        return f"{stage} does not fit with any of these options; it needs a smaller memory, picture or model"
    return f"{stage} fits with {options(machine, changed)}: {need_of(recipe, stage, changed).total / 1e9:.1f} GB"


def instead(recipe: Recipe, step: str, machine: Machine) -> str:
    """What would take less than a step does that ran out of memory, whether or not it was planned to fit."""
    stages = [need for need in needs(recipe, machine) if need.stage.startswith(step)]
    fullest = max(stages, key=lambda need: need.total)
    less = min(machine.share, 0.85 * fullest.total / machine.gpu_memory)
    return advice(recipe, fullest.stage, replace(machine, share=less))


def options(before: Machine, after: Machine) -> str:
    """What differs, as options of the command."""
    said = []
    if after.gpus != before.gpus:
        said.append(f"--gpus {after.gpus}")
    if after.sequence_parallel != before.sequence_parallel:
        said.append(f"--sequence-parallel {after.sequence_parallel}")
    if after.checkpointing != before.checkpointing:
        said.append("--checkpointing")
    if after.samples != before.samples:
        said.append(f"--samples {after.samples}")
    return " ".join(said)


def report(recipe: Recipe, name: str, machine: Machine, stage: str = "") -> str:
    """The table, a line of advice for each stage that does not fit, and what is assumed."""
    if stage and stage not in STAGES:
        raise UserError(f"--stage is {stage!r}; {allowed(stage, STAGES)}")
    heads = recipe.teacher.model.heads
    if heads % machine.sequence_parallel:
        raise UserError(f"sequence_parallel is {machine.sequence_parallel}; it must divide the {heads} heads of {name}")
    trainings = (recipe.teacher.optimizer, recipe.student_init.optimizer, recipe.distill.optimizer,
                 recipe.distill.critic_optimizer)  # fmt: skip
    if machine.cut and any(optimizer.muon for optimizer in trainings):
        raise UserError(f"zero is {machine.zero} and {name} trains with muon, which takes whole matrices; allowed is 0")
    found = [need for need in needs(recipe, machine) if need.stage.startswith(stage)]
    lines = [f"{name} on {machine.gpus} GPU(s) of {machine.gpu_memory / 1e9:.0f} GB; GB on each GPU", ""]
    lines.append(f"{'stage':<28}" + aligned(HEAD))
    for need in found:
        numbers = (need.weights, need.gradients, need.optimizer, need.ema, need.activations, need.memory, need.codec,
                   need.total, need.sent)  # fmt: skip
        cells = [
            str(need.samples),
            *(f"{x / 1e9:.{0 if x > 1e12 else 1}f}" for x in numbers),
            "yes" if fits(need, machine) else "no",
        ]
        lines.append(f"{need.stage:<28}" + aligned(cells))
    full = [need for need in found if not fits(need, machine)]
    lines += ["", *(advice(recipe, need.stage, machine) for need in full)]
    return "\n".join([*lines, *([""] if full else []), ASSUMED.format(cut=machine.cut, share=machine.share)])


def aligned(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def bytes_of(text: str) -> float:
    """80GB is 80e9 bytes, 80GiB is 80 x 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB)", text)
    if not found:
        raise UserError(f"--gpu-memory is {text!r}; it must be a number and GB or GiB, such as 80GB")
    return float(found[1]) * {"GB": 1e9, "GiB": 2**30}[found[2]]
