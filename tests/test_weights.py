"""Networks on disk, and the start weights that ship."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import CFG, transformer

from relic import artifacts, recipes
from relic.model import weights
from relic.model.codec import Codec
from relic.model.config import Codec as CodecConfig

TINY = weights.SHIPPED / "tiny"


def test_what_was_saved_is_loaded(tmp_path):
    model = transformer()
    weights.save(model, tmp_path)
    loaded = weights.load_transformer(tmp_path)
    assert loaded.cfg == model.cfg
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_missing_tensor_is_named(tmp_path):
    weights.save(Codec(CodecConfig(decoder_widths=(8, 8, 8, 8))), tmp_path)
    with pytest.raises(ValueError, match=r"tensor action_encoder.* is missing"):
        weights.load_into(transformer(), tmp_path)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    weights.save(Codec(CodecConfig(decoder_widths=(8, 8, 8, 8))), tmp_path)
    with pytest.raises(ValueError, match=r"decoder.1.bias is \(8,\); the model's is \(16,\)"):
        weights.load_into(Codec(CodecConfig(decoder_widths=(16, 8, 8, 8))), tmp_path)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    weights.save(transformer(), tmp_path)
    with pytest.raises(ValueError, match="holds no codec"):
        weights.load_codec(tmp_path)


def test_start_weights_that_compute_something_else_are_refused(tmp_path):
    weights.save(transformer(), tmp_path)
    weights.check_start(replace(CFG, frames=16), tmp_path)
    with pytest.raises(ValueError, match="has heads 2; the model to train has 4"):
        weights.check_start(replace(CFG, heads=4), tmp_path)


def test_unknown_start_weights_are_said_with_what_there_is():
    with pytest.raises(ValueError, match="no start weights 'tiny/bass'; relic ships tiny/base, tiny/codec"):
        weights.start_folder("tiny/bass")


def test_the_shipped_weights_are_those_that_are_documented():
    documented = json.loads((TINY / "weights.json").read_text())
    for name in ("codec", "base"):
        assert artifacts.sha256(TINY / name / "model.safetensors") == documented[name]["sha256"]


def test_the_shipped_weights_fit_the_recipe_and_take_at_most_16_mb():
    recipe = recipes.tiny()
    assert weights.load_codec(weights.start_folder(recipe.codec.start)).cfg == recipe.codec.model
    loaded = weights.load_transformer(weights.start_folder(recipe.teacher.start)).cfg
    assert loaded == type(loaded)(**{**vars(recipe.teacher.model), "frames": loaded.frames})
    assert sum(path.stat().st_size for path in TINY.rglob("*.safetensors")) <= 16 * 2**20


def test_no_test_walk_was_trained_on():
    recorded = json.loads((TINY / "weights.json").read_text())["recorded_from"]
    assert recorded["region"] == "train"
    assert not set(recorded["maps"]) & set(recipes.tiny().curate.doom.unseen_maps)
    assert recorded["seed"] != recipes.tiny().curate.seed
