"""Low-rank adaptation of the teacher by peft."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CFG, conditions, latents, transformer, whole_and_resumed, write_samples

from relic import __main__ as command
from relic.model import config, weights
from relic.model.transformer import Transformer
from relic.tracking import Run
from relic.train import lora, optimizer, teacher
from relic.train.config import Checkpointing, Lora, Optimizer, Stage, Teacher

LORA = Lora(rank=4, alpha=8, dropout=0.1)


def adapted(seed: int = 0) -> Transformer:
    """A model whose adapters matter."""
    model = transformer()
    lora.adapt(model, LORA)
    model.eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.inference_mode()
def velocity(model: Transformer) -> torch.Tensor:
    made, _ = model(latents(4), torch.full((1, 4), 500.0), conditions(4))
    return made


def test_an_untrained_adapter_changes_nothing() -> None:
    model = transformer()
    before = velocity(model)
    lora.adapt(model, LORA)  # its dropout included: what it adds is zero
    assert torch.equal(velocity(model), before)


def test_merged_equals_adapted() -> None:
    model = adapted()
    assert (velocity(model) - velocity(transformer())).abs().max() > 0.1
    torch.testing.assert_close(velocity(lora.merged(model)), velocity(model), atol=1e-5, rtol=0)


def test_an_adapter_adds_its_product_times_alpha_over_rank() -> None:
    model = adapted()
    down, up = (model.get_parameter(f"blocks.0.ffn.0.lora_{name}.default.weight") for name in "AB")
    after, before = (m.get_parameter("blocks.0.ffn.0.weight") for m in (lora.merged(model), transformer()))
    torch.testing.assert_close(after - before, LORA.alpha / LORA.rank * up @ down)


def test_a_merged_model_is_a_plain_one(tmp_path: Path) -> None:
    plain = lora.merged(adapted())
    assert plain.state_dict().keys() == transformer().state_dict().keys()
    weights.save(plain, tmp_path)
    assert torch.equal(velocity(weights.load_transformer(tmp_path)), velocity(plain))


def test_a_model_without_adapters_is_merged_already() -> None:
    model = transformer()
    assert lora.merged(model) is model


def test_only_adapters_and_control_paths_are_trained() -> None:
    model = adapted()
    made, _ = model(latents(4), torch.full((1, 4), 500.0), conditions(4))
    made.square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == set(optimizer.trained(model))
    assert all(".lora_" in name or name.startswith(lora.WHOLE) for name in moved)
    assert len([name for name in moved if ".lora_A." in name]) == 10 * CFG.layers


def test_adapters_go_where_the_targets_say() -> None:
    model = transformer()
    lora.adapt(model, replace(LORA, targets=("cross_attention",)))
    places = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    names = ("to_q", "to_k", "to_v", "to_out")
    assert places == {f"blocks.{i}.cross_attention.{name}" for i in range(CFG.layers) for name in names}


def test_of_the_14b_transformer_one_percent_is_trained() -> None:
    cfg = config.Transformer(
        width=5120, ffn=13824, layers=40, heads=40, text_width=4096, text_tokens=512, text_vocabulary=0
    )
    with torch.device("meta"):
        model = Transformer(cfg)
        lora.adapt(model, Lora(rank=32))
    share = sum(p.numel() for p in optimizer.trained(model).values()) / sum(p.numel() for p in model.parameters())
    assert 0.01 < share < 0.02


def test_the_average_copies_only_what_is_trained() -> None:
    model = adapted()
    ema = optimizer.Ema(model, 0.5)
    own = dict(ema.module.named_parameters())
    for name, parameter in model.named_parameters():
        assert (own[name] is parameter) == (not parameter.requires_grad)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    weights.save(transformer(), folder)
    return folder


def test_a_training_with_adapters_resumed_equals_uninterrupted(start: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples")
    cfg = Teacher(
        model=CFG, start=str(start), lora=LORA, stages=(Stage(latents=4, steps=6, batch=2),),
        optimizer=Optimizer(learning_rate=1e-2, warmup=0), checkpoint=Checkpointing(every_s=0),
    )  # fmt: skip
    whole, resumed = whole_and_resumed(teacher.main, cfg, tmp_path, killed_at=4, samples=[tmp_path / "samples"])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before = load_file(start / "model.safetensors")
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert "blocks.1.ffn.2.weight" in changed
    assert "pose_encoder.outputs.0.weight" in changed
    assert "head.weight" not in changed


def test_start_weights_and_the_adapter_give_the_written_model(start: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples")
    cfg = Teacher(
        model=replace(CFG, frames=4), start=str(start), lora=LORA, stages=(Stage(latents=4, steps=2, batch=1),)
    )
    teacher.main(cfg, samples=[tmp_path / "samples"], out=tmp_path, run=Run.silent())
    out = tmp_path / "merged"
    assert command.main(["weights", "merge", str(start), "--adapter", str(tmp_path), "--out", str(out)]) == 0
    written, again = (load_file(folder / "model.safetensors") for folder in (tmp_path, out))
    assert all(torch.equal(written[name], again[name]) for name in written)
    assert (out / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_an_adapter_that_does_not_fit_is_named(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter\.safetensors"):
        lora.load(start, tmp_path)
    model = adapted()
    names = list(optimizer.trained(model))
    lora.save(model, LORA, tmp_path, names)
    with pytest.raises(ValueError, match="no start weights"):
        lora.load(tmp_path / "nowhere", tmp_path)
    lora.save(model, LORA, tmp_path, names[1:])
    with pytest.raises(ValueError, match=f"tensor {names[0]} is missing"):
        lora.load(start, tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / lora.FILE)
    with pytest.raises(ValueError, match="does not say what it adapts"):
        lora.load(start, tmp_path)


def test_dials_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank is -1, alpha 16, dropout 0.0; allowed are a rank from 0 on"):
        Lora(rank=-1)
    with pytest.raises(ValueError, match=r"dropout 1\.0"):
        replace(LORA, dropout=1.0)
    with pytest.raises(ValueError, match="allowed are one or more of attention, cross_attention, ffn"):
        Lora(targets=("head",))
    with pytest.raises(ValueError, match=r"lora\.rank is 4 and start is empty"):
        Teacher(lora=LORA)
    with pytest.raises(ValueError, match="at most the model's width, 48"):
        Teacher(model=CFG, start="tiny/base", lora=Lora(rank=49))


def test_full_training_writes_no_adapter(start: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples")
    cfg = Teacher(model=CFG, start=str(start), stages=(Stage(latents=4, steps=1, batch=1),))
    (tmp_path / "out").mkdir()
    teacher.main(cfg, samples=[tmp_path / "samples"], out=tmp_path / "out", run=Run.silent())
    assert not (tmp_path / "out" / lora.FILE).exists()
