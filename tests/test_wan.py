"""Wan-2.1's weights in and out, against diffusers' own model."""

import json
from pathlib import Path

import pytest
import torch
import wan_models
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from relic import recipes
from relic.__main__ import main
from relic.model import config, wan, weights
from relic.model.config import ImportWeights
from relic.model.tensors import Place

CFG = config.Transformer(
    width=48, ffn=80, layers=2, heads=2, latent_channels=4, text_width=12, text_tokens=512, text_vocabulary=0,
    frequency_width=32, control_width=256, trained_frames=21, frames=21,
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> WanTransformer3DModel:
    return wan_models.wan(CFG)


@pytest.fixture(scope="module")
def published(theirs: WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers publishes it, in several files."""
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported")
    assert main(["weights", "import", str(published), "--out", str(out)]) == 0
    return out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@torch.inference_mode()
def test_an_imported_model_computes_what_diffusers_does(theirs: WanTransformer3DModel, imported: Path) -> None:
    model = weights.load_transformer(imported)
    assert model.cfg == CFG
    latents, timesteps = torch.randn(2, 3, 4, 10, 6), torch.rand(2, 3) * 1000
    given = wan_models.conditions(CFG, 3, batch=2)
    made, _ = model(latents, timesteps, given)
    tokens = timesteps.repeat_interleave(5 * 3, 1)
    wanted = theirs(latents.movedim(1, 2), tokens, given.text).sample.movedim(1, 2)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)


def test_wans_own_names_give_the_same_model(theirs: WanTransformer3DModel, imported: Path, tmp_path: Path) -> None:
    names = [name for name in wan.expected(CFG) if not name.startswith(wan.CONTROL)]
    state = theirs.state_dict()
    released = {wan.name_in("wan", name): state[wan.name_in("diffusers", name)].contiguous() for name in names}
    assert {"blocks.1.self_attn.norm_q.weight", "blocks.0.norm3.bias", "head.head.weight"} <= released.keys()
    save_file(released, tmp_path / "released.safetensors")
    wan.import_weights([tmp_path / "released.safetensors"], tmp_path / "out", heads=2)
    assert same(tensors_of(tmp_path / "out"), tensors_of(imported))


def test_an_export_is_loaded_by_diffusers(theirs: WanTransformer3DModel, imported: Path, tmp_path: Path) -> None:
    for out, largest in (("one", 10**9), ("several", 100_000)):
        wan.export_weights(imported, tmp_path / out, shard_bytes=largest)
        loaded = WanTransformer3DModel.from_pretrained(tmp_path / out)
        assert same(loaded.state_dict(), theirs.state_dict())
        assert loaded.config.ffn_dim == CFG.ffn
    files = sorted((tmp_path / "several").glob("diffusion*.safetensors"))
    assert len(files) > 2
    assert max(path.stat().st_size for path in files) < 110_000


def test_import_export_import_is_exact_with_the_control_paths(imported: Path, tmp_path: Path) -> None:
    model = weights.load_transformer(imported)
    for name, parameter in model.named_parameters():
        if name.startswith(wan.CONTROL):
            torch.nn.init.normal_(parameter)
    weights.save(model, tmp_path / "trained", torch.bfloat16)
    assert (
        main(["weights", "export", str(tmp_path / "trained"), "--format", "diffusers", "--out", f"{tmp_path}/e"]) == 0
    )
    wan.import_weights([tmp_path / "e"], tmp_path / "again")
    assert same(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "trained"))
    assert weights.load_transformer(tmp_path / "again").cfg == CFG


def test_new_control_paths_change_nothing(imported: Path) -> None:
    state = tensors_of(imported)
    assert not any(state[name].any() for name in state if ".outputs." in name and name.startswith(wan.CONTROL))
    assert state["pose_encoder.hidden.0.weight"].any()


def test_a_pickled_file_is_read_with_a_flag_only(theirs: WanTransformer3DModel, imported: Path, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth is not a safetensors file; a .pth is read with --pickle only"):
        wan.import_weights([tmp_path / "model.pth"], tmp_path / "out", heads=2)
    wan.import_weights([tmp_path / "model.pth"], tmp_path / "out", heads=2, pickle=True)
    assert same(tensors_of(tmp_path / "out"), tensors_of(imported))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.1.ffn.net.2.bias": None}, r"tensor blocks.1.ffn.net.2.bias is missing; it must be \(48,\)"),
        ({"proj_out.bias": torch.zeros(5)}, r"tensor proj_out.bias is \(5,\); it must be \(16,\)"),
        ({"img_emb.proj": torch.zeros(2)}, r"tensor img_emb.proj \(2,\) is not one of a text-to-video Wan-2.1"),
        ({"condition_embedder.time_proj.weight": None}, "holds no Wan transformer"),
        ({"patch_embedding.weight": None}, "tensor patch_embedding.weight is missing"),
    ],
)
def test_what_does_not_fit_is_named(
    theirs: WanTransformer3DModel, tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    state = {k: v for k, v in {**theirs.state_dict(), **change}.items() if v is not None}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        wan.import_weights([tmp_path / "model.safetensors"], tmp_path / "out", heads=2)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_heads_must_be_known(theirs: WanTransformer3DModel, tmp_path: Path) -> None:
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"how many heads there are; give --heads \(Wan 1.3B: 12, 14B: 40\)"):
        wan.import_weights([tmp_path / "model.safetensors"], tmp_path / "out")


@pytest.mark.parametrize("name", ["wan_1b", "relic_14b"])
def test_imported_weights_fit_the_recipe_that_starts_from_them(name: str) -> None:
    model = recipes.named(name).teacher.model
    found = {
        wan.name_in("diffusers", ours): Place(Path(), "", torch.bfloat16, wan.shape_there(ours, shape, model))
        for ours, shape in wan.expected(model).items()
        if not ours.startswith(wan.CONTROL)
    }
    imported = wan.config_of(None, found, "diffusers", "", model.heads, ImportWeights(source=(), out="").control_width)
    assert imported == model


def test_an_export_into_a_used_folder_is_refused(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").touch()
    with pytest.raises(ValueError, match="which is not empty; give a new folder"):
        wan.export_weights(imported, tmp_path)
    with pytest.raises(ValueError, match="where the weights to import lie; give another folder"):
        wan.import_weights([imported], imported)


def test_a_damaged_export_is_refused(imported: Path, tmp_path: Path) -> None:
    wan.export_weights(imported, tmp_path / "e")
    config_file = tmp_path / "e" / "config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "ffn_dim": 81}))
    with pytest.raises(ValueError, match=r"config.json is missing or damaged: its sha256 must be"):
        wan.import_weights([tmp_path / "e"], tmp_path / "out")


def test_a_missing_shard_and_an_empty_folder_are_named(published: Path, tmp_path: Path) -> None:
    index = json.loads(next(published.glob("*.index.json")).read_text())
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"-of-000.*safetensors is missing; give a folder of weights"):
        wan.import_weights([tmp_path], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no weights"):
        wan.import_weights([tmp_path / "empty"], tmp_path / "out")
