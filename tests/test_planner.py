"""The plan against the networks themselves: counts exactly, memory to the byte, activations by torch's own tracking."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from measure import Held
from tiny_models import conditions, transformer
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint

from relic import __main__ as command
from relic import recipes
from relic.generate import sampler
from relic.generate.config import Rollout as Walking
from relic.generate.config import Sampler
from relic.generate.rollout import Rollout, play
from relic.memory import masks
from relic.memory.cache import Memory
from relic.memory.config import Memory as MemoryConfig
from relic.model import config, fp8
from relic.model.attention import KeyValue, Past
from relic.model.codec import Codec
from relic.model.transformer import Transformer
from relic.train import footprint, planner, replay, shares
from relic.train.config import Machine, Optimizer
from relic.train.footprint import Pass
from relic.train.optimizer import Optimizers

WIDE = config.Transformer(
    width=96, ffn=512, layers=4, heads=4, latent_channels=4, text_width=40, text_tokens=4, control_width=16
)
DEEP = replace(WIDE, width=48, ffn=160, layers=8, heads=2)
SMALL_MEMORY = MemoryConfig(window=2, capacity=8)
CPU = torch.device("cpu")


def built(cfg: config.Transformer) -> Transformer:
    with torch.device("meta"):
        return Transformer(cfg)


def num_parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Counts


@pytest.mark.parametrize("cfg", [WIDE, DEEP, replace(WIDE, text_vocabulary=0, patch=(1, 4, 2))])
def test_parameters_are_counted_exactly(cfg: config.Transformer) -> None:
    assert footprint.parameters(cfg) == num_parameters(built(cfg))


@pytest.mark.parametrize(
    ("name", "wan", "controls"), [("wan_1b", 1_418_996_800, 23_842_816), ("relic_14b", 14_288_491_584, 105_424_896)]
)
def test_the_real_sizes_are_wans_and_the_controls(name: str, wan: int, controls: int) -> None:
    from diffusers import WanTransformer3DModel

    cfg = recipes.named(name).teacher.model
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=cfg.heads, attention_head_dim=cfg.head_width, ffn_dim=cfg.ffn, num_layers=cfg.layers
        )
    model = built(cfg)
    encoders = num_parameters(model.action_encoder) + num_parameters(model.pose_encoder)
    assert (num_parameters(model) - encoders, encoders) == (num_parameters(theirs), controls)
    assert (footprint.wan_parameters(cfg), footprint.control_parameters(cfg)) == (wan, controls)


@pytest.mark.parametrize("cfg", [WIDE, replace(WIDE, text_vocabulary=0)])
def test_linear_layers_are_counted_exactly(cfg: config.Transformer) -> None:
    model = built(cfg)
    in_low = sum(num_parameters(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert footprint.linears(cfg) == in_low
    of_block = sum(num_parameters(layer) for layer in model.blocks[0].modules() if isinstance(layer, torch.nn.Linear))
    rest = num_parameters(model.blocks[0]) - of_block
    assert footprint.multiplied_block(cfg, 2) == 2 * of_block + 4 * rest


@pytest.mark.parametrize("widths", [(64, 48, 32, 32), (256, 128, 64, 64)])
def test_the_codecs_parameters_are_counted_exactly(widths: tuple[int, int, int, int]) -> None:
    cfg = config.Codec(decoder_widths=widths)
    assert footprint.codec_parameters(cfg) == num_parameters(Codec(cfg))


@pytest.mark.parametrize("muon", [False, True])
def test_moments_are_the_optimisers_own(muon: bool) -> None:
    model, cfg = Transformer(WIDE), Optimizer(muon=muon)
    optimizers = Optimizers(model, cfg)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1e-3)
    states = [state for part in optimizers.parts for state in part.state.values()]
    held = sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor) and x.ndim)
    assert footprint.moments(WIDE, cfg) == held


def test_a_served_student_weighs_as_much_as_its_export() -> None:
    model = transformer(WIDE)
    fp8.quantise(model)
    assert footprint.served_bytes(WIDE) == sum(x.nbytes for x in model.state_dict().values())


@pytest.mark.parametrize(("name", "gigabytes"), [("wan_1b", 57), ("relic_14b", 572)])
def test_distillations_states_are_what_the_papers_page_derives(name: str, gigabytes: float) -> None:
    """54 and 543 GB with the teacher in bfloat16; where it is cut it is in float32."""
    recipe, machine = recipes.named(name), Machine(gpus=32, bucket=1)
    found = [need for need in planner.needs(recipe, machine) if need.stage.startswith("distill")]
    share = footprint.wan_parameters(recipe.teacher.model) / footprint.parameters(recipe.teacher.model)
    assert [round(need.states * machine.gpus * share / 1e9) for need in found] == [gigabytes] * len(found)


# Memory


@pytest.mark.parametrize("name", ["wan_1b", "relic_14b"])
@pytest.mark.parametrize(
    ("dtype", "policy"), [("fp8", "relic"), ("bf16", "full"), ("fp32", "window"), ("fp8", "relic_landmarks")]
)
def test_the_memory_takes_what_it_allocates_at_the_real_sizes(name: str, dtype: str, policy: str) -> None:
    cfg = recipes.named(name).teacher.model
    memory = MemoryConfig(dtype=dtype, policy=policy)
    sizes = {"layers": cfg.layers, "heads": cfg.heads, "head_width": cfg.head_width}
    made = Memory(memory, batch=2, rows=30, columns=52, device="meta", **sizes)
    assert footprint.memory_bytes(cfg, memory, rows=30, columns=52, batch=2) == made.num_bytes


@pytest.mark.parametrize(("name", "whole", "compressed"), [("wan_1b", 21.4, 2.7), ("relic_14b", 95, 11.9)])
def test_the_papers_walk_takes_the_papers_bytes(name: str, whole: float, compressed: float) -> None:
    cfg = recipes.named(name).teacher.model
    row = 2 * cfg.layers * cfg.width / 2**30  # keys and values of a token, at a byte a number
    assert 2 * row * 80 * 1560 == pytest.approx(whole, rel=0.01)
    assert row * MemoryConfig().tokens(30, 52, 80) == pytest.approx(compressed, rel=0.02)  # 31,512 for 31,200 tokens


# Activations


CASES: dict[str, tuple[config.Transformer, int, dict[str, Any]]] = {
    "whole": (WIDE, 6, {}),
    "deep": (DEEP, 8, {}),
    "segments": (WIDE, 8, {"segments": masks.hybrid(8, 2, 2, SMALL_MEMORY)}),
    "many segments": (DEEP, 16, {"segments": masks.hybrid(16, 1, 8, SMALL_MEMORY)}),
    "past": (WIDE, 2, {"past": 400}),
}


def step(model: Transformer, given: Pass) -> tuple[Tensor, list[KeyValue]]:
    """A pass over random inputs: a loss with its graph, and what the blocks gave."""
    past = None
    if given.past:
        shape = (given.batch, given.past + given.tokens, model.cfg.heads, model.cfg.head_width)
        dtype = torch.bfloat16 if given.low == 2 else torch.float32
        past = [Past(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)) for _ in model.blocks]
    latents = torch.randn(given.batch, given.latents, 4, 2 * given.rows, 2 * given.columns)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.low == 2):
        velocity, own = model(
            latents, torch.rand(latents.shape[:2]), conditions(given.latents, batch=len(latents)), past=past,
            segments=given.segments or None,
        )  # fmt: skip
    return velocity.square().mean(), own


def expected(cfg: config.Transformer, given: Pass, **how: bool) -> float:
    copies = 2 * footprint.parameters(cfg) if given.low == 2 else 0
    return footprint.activations(cfg, given, **how) + copies


@pytest.mark.parametrize("low", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_what_autograd_saves(case: str, low: int) -> None:
    cfg, latents, dials = CASES[case]
    model, given = transformer(cfg), Pass(latents=latents, rows=8, columns=10, batch=2, low=low, **dials)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _loss, own = step(model, given)
    for key_value in own:
        keep(key_value.keys), keep(key_value.values)
    measured = sum(x.untyped_storage().nbytes() for storage, x in kept.items() if storage not in weights)
    assert expected(cfg, given) == pytest.approx(measured, rel=0.05)  # 15 % is promised


@pytest.mark.parametrize("low", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_steps_peak_is_torchs_own(checkpointing: bool, low: int) -> None:
    model, cfg = transformer(WIDE), Optimizer()
    given = Pass(latents=6, rows=8, columns=10, batch=4, low=low)
    if checkpointing:
        for block in model.blocks:
            whole: Any = block.forward
            block.forward = lambda *args, whole=whole: checkpoint(whole, *args, use_reentrant=False)  # type: ignore
    optimizers = Optimizers(model, cfg)
    step(model, given)[0].backward()
    optimizers.step(1e-3)
    tracker = MemTracker()
    tracker.track_external(model, *optimizers.parts)
    with tracker:
        step(model, given)[0].backward()
    states = 4 * footprint.parameters(WIDE) + footprint.moments(WIDE, cfg)
    wanted = states + expected(WIDE, given, checkpointing=checkpointing)
    # a gradient appears as the graph goes; checkpointing has its peak where most are there
    wanted += 4 * footprint.parameters(WIDE) if checkpointing else 0
    assert wanted == pytest.approx(tracker.get_tracker_snapshot("peak")[CPU]["Total"], rel=0.15)


LONG_MEMORY = MemoryConfig(window=2, capacity=16, schedule=(1,))  # most of a walk's bytes are the memory's
WALKING = Walking(chunk=2, memory=LONG_MEMORY)


def walk(model: Transformer) -> Rollout:
    image = torch.randn(2, 4, 16, 20, generator=torch.Generator().manual_seed(0))
    return Rollout(model, WALKING, image_latent=image, text=conditions(1, batch=2).text, seed=1)


def last_chunk(low: int) -> Pass:
    past = LONG_MEMORY.tokens(8, 10, LONG_MEMORY.capacity - WALKING.chunk)
    return Pass(latents=WALKING.chunk, rows=8, columns=10, batch=2, low=low, past=past)


@pytest.mark.parametrize("low", [2, 4])
def test_a_walks_peak_is_torchs_own(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: low == 2)
    model, chunk = transformer(WIDE), last_chunk(low)
    with Held() as measured:
        play(walk(model), conditions(16, batch=2).actions, num_latents=16)
    storage = footprint.memory_bytes(WIDE, LONG_MEMORY, rows=8, columns=10, batch=2)
    storage += footprint.context_bytes(WIDE, LONG_MEMORY, chunk)
    assert storage + footprint.walking(WIDE, LONG_MEMORY, chunk, footprint.without_graph(WIDE, chunk)) == (
        pytest.approx(measured.most, rel=0.15)
    )


@pytest.mark.parametrize("low", [2, 4])
def test_a_solutions_peak_is_torchs_own(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: low == 2)
    model, given = transformer(WIDE), Pass(latents=16, rows=8, columns=10, batch=2, low=low)
    image, ode = torch.randn(2, 4, 16, 20), Sampler(steps=2)
    with Held() as measured:
        sampler.sample(model, ode, image_latent=image, conditions=conditions(16, batch=2), num_latents=16, seed=0)
    assert footprint.without_graph(WIDE, given, remember=False) == pytest.approx(measured.most, rel=0.15)


@pytest.mark.parametrize("low", [2, 4])
def test_a_replays_peak_is_torchs_own(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: low == 2)
    model, chunk = transformer(WIDE), last_chunk(low)
    actions = conditions(16, batch=2).actions
    with Held() as measured:
        first, again = walk(model), walk(model)
        made, passes = play(first, actions, num_latents=16)
        replay.backward(again, actions, made, passes, made)
    storage = footprint.memory_bytes(WIDE, LONG_MEMORY, rows=8, columns=10, batch=2)
    storage += footprint.context_bytes(WIDE, LONG_MEMORY, chunk)
    gradients = 4 * footprint.parameters(WIDE)  # of the earlier chunks
    held = footprint.walking(WIDE, LONG_MEMORY, chunk, expected(WIDE, chunk))
    assert 2 * storage + gradients + held == pytest.approx(measured.most, rel=0.15)


# The plan


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_has_a_line_for_every_length_of_every_stage(name: str) -> None:
    recipe = recipes.named(name)
    lines = [need.stage for need in planner.needs(recipe, Machine())]
    assert len(lines) == len(set(lines)) == len(recipe.teacher.stages) + 2 * len(recipe.distill.stages) + 3


def test_shared_over_twice_the_gpus_states_and_activations_halve() -> None:
    recipe = recipes.relic_14b()
    machines = [Machine(gpus=8 * n, sequence_parallel=4 * n, samples=1, bucket=1) for n in (1, 2)]
    one, two = (next(planner.needs(recipe, machine)) for machine in machines)
    copies = shares.copies(recipe.teacher.model, machines[0])  # of the blocks at work: the same on every GPU
    assert one.states == pytest.approx(2 * two.states)
    assert one.activations - copies == 2 * (two.activations - copies)


def test_each_stage_of_zero_cuts_more() -> None:
    recipe = recipes.relic_14b()
    states = [next(planner.needs(recipe, Machine(gpus=8, zero=zero))).states for zero in range(4)]
    whole = 4 * footprint.parameters(recipe.teacher.model)
    assert states == sorted(states, reverse=True)
    assert states[1] - states[2] == pytest.approx(7 / 8 * whole)  # gradients
    assert states[2] - states[3] == pytest.approx(whole)  # weights, and the optimiser's own part of them


def test_offloading_takes_the_optimisers_state_off_the_gpu_then_the_weights() -> None:
    recipe = recipes.relic_14b()
    found = [next(planner.needs(recipe, Machine(gpus=8, offload=where))) for where in ("none", "optimizer", "all")]
    assert [need.optimizer > 0 for need in found] == [True, False, False]
    assert [need.weights > 0 for need in found] == [True, True, False]
    assert [need.ema > 0 for need in found] == [True, True, False]


def test_a_replays_backwards_send_gradients_again_only_where_no_whole_ones_are_kept() -> None:
    recipe = recipes.wan_1b()
    sent = {
        (zero, latents): planner.need_of(recipe, f"distill, {latents} latents, replay", Machine(gpus=8, zero=zero)).sent
        for zero in (0, 1, 2) for latents in (20, 40)
    }  # fmt: skip
    assert sent[0, 20] == sent[0, 40]
    assert sent[1, 20] == sent[1, 40]
    chunk = 2 * 7 / 8 * footprint.multiplied(recipe.teacher.model, 2)
    assert sent[2, 40] - sent[2, 20] == pytest.approx(5 * chunk)


@pytest.mark.parametrize("stage", ["teacher, 80 latents", "distill, 80 latents, replay", "serve"])
def test_the_advice_makes_a_stage_fit_and_nothing_less_does(stage: str) -> None:
    recipe, machine = recipes.relic_14b(), Machine(gpus=8)
    changed = planner.remedy(recipe, stage, machine)
    assert changed
    assert planner.fits(planner.need_of(recipe, stage, changed), changed)
    for name in ("gpus", "sequence_parallel", "checkpointing", "samples"):
        less = replace(changed, **{name: getattr(machine, name)})
        if less != changed:
            assert not planner.fits(planner.need_of(recipe, stage, less), less), name


def test_the_command_says_what_does_not_fit_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", "--recipe", "relic_14b", "--gpus", "32", "--gpu-memory", "80GB"]) == 0
    said = capsys.readouterr().out
    assert "teacher, 80 latents fits with --sequence-parallel 4: " in said
    assert "Assumed: float32 weights" in said


def test_the_command_answers_without_torch() -> None:
    script = (
        "import sys, relic.__main__ as command\n"
        "assert command.main(['plan', '--recipe', 'relic_14b', '--stage', 'serve']) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--stage", "serv"], "--stage is 'serv'; did you mean 'serve'? allowed are teacher, trajectories, s"),
        (["--gpu-memory", "80"], "--gpu-memory is '80'; it must be a number and GB or GiB, such as 80GB"),
        (["--gpus", "3", "--sequence-parallel", "2"], "sequence_parallel is 2 and gpus 3; both must be"),
        (
            ["--gpus", "2", "--sequence-parallel", "2", "--zero", "0"],
            "sequence_parallel is 2; it must divide the 3 heads",
        ),
        (["--samples", "-1"], "samples -1; allowed are more than 0, and at least 0"),
        (
            ["--gpus", "2", "--zero", "3"],
            "zero is 3 and tiny trains with muon, which takes whole matrices; allowed is 0",
        ),
        (["--zero", "4"], "zero is 4; allowed are 0, 1, 2 and 3"),
        (["--zero", "1", "--offload", "all"], "offload is 'all' with zero 1; 'optimizer' needs zero 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", *args]) == 2
    assert said in capsys.readouterr().err
