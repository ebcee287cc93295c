"""Low-rank adaptation of the teacher by peft."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CFG, conditions, latents, transformer, whole_and_resumed, write_samples

from relic.model import weights
from relic.model.transformer import Transformer
from relic.tracking import Run
from relic.train import lora, optimizer, teacher
from relic.train.config import Lora, Optimizer, Stage, Teacher

LORA = Lora(rank=4, alpha=8)


def adapted(seed: int = 0) -> Transformer:
    """A model whose adapters matter."""
    model = transformer()
    lora.adapt(model, LORA)
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
    lora.adapt(model, LORA)
    assert torch.equal(velocity(model), before)


def test_merged_equals_adapted() -> None:
    model = adapted()
    assert (velocity(model) - velocity(transformer())).abs().max() > 0.1
    torch.testing.assert_close(velocity(lora.merged(model)), velocity(model), atol=1e-5, rtol=0)


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
        optimizer=Optimizer(learning_rate=1e-2, warmup=0), checkpoint_every_s=0,
    )  # fmt: skip
    whole, resumed = whole_and_resumed(teacher.main, cfg, tmp_path, killed_at=4, samples=[tmp_path / "samples"])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before = load_file(start / "model.safetensors")
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert "blocks.1.ffn.2.weight" in changed
    assert "pose_encoder.outputs.0.weight" in changed
    assert "head.weight" not in changed
    adapter = load_file(tmp_path / "resumed" / lora.FILE)
    assert sum(x.numel() for name, x in adapter.items() if ".lora_" in name) < 0.3 * sum(
        x.numel() for x in before.values()
    )


def test_dials_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank is -1, alpha 16, dropout 0.0; allowed are a rank from 0 on"):
        Lora(rank=-1)
    with pytest.raises(ValueError, match=r"dropout 1\.0"):
        replace(LORA, dropout=1.0)


def test_full_training_writes_no_adapter(start: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples")
    cfg = Teacher(model=CFG, start=str(start), stages=(Stage(latents=4, steps=1, batch=1),))
    (tmp_path / "out").mkdir()
    teacher.main(cfg, samples=[tmp_path / "samples"], out=tmp_path / "out", run=Run.silent())
    assert not (tmp_path / "out" / lora.FILE).exists()
