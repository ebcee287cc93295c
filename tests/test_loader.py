import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import samples
import torch

from relic import artifacts
from relic.data import embeddings, join, loader
from relic.data.encode import controls
from relic.geometry.config import Actions
from relic.model import config
from relic.model.text import tokenize
from relic.tracking import Run

WORDS = config.Transformer()
EMBEDDED = replace(WORDS, text_vocabulary=0, text_width=8)


@pytest.fixture
def dataset(tmp_path) -> loader.Dataset:
    samples.write(tmp_path, [[0, 1, 2], [3, 4]])
    return loader.load([tmp_path], WORDS)


def test_a_batch_holds_the_samples_asked_for_in_order(dataset):
    batch = dataset.batch([3, 1, 3], num_latents=4)
    assert batch.latents.dtype == torch.float32
    assert batch.latents.shape == (3, 4, 2, 3, 4)
    np.testing.assert_allclose(batch.latents[:, 0, 0, 0, 0], [3, 1, 3], atol=1e-3)
    assert torch.equal(batch.conditions.text, tokenize(["room 3", "room 1", "room 3"], 16))


@pytest.mark.parametrize(("num_latents", "num_frames"), [(1, 1), (2, 5), (4, 13)])
def test_a_shorter_length_takes_the_first_latents_and_the_frames_that_they_stand_for(dataset, num_latents, num_frames):
    batch = dataset.batch([2], num_latents=num_latents)
    np.testing.assert_allclose(batch.latents[0, :, 0, 0, 0], 2 + np.arange(num_latents) / 100, atol=1e-3)
    assert batch.conditions.actions[0, :, 12].tolist() == list(range(num_frames))
    assert batch.conditions.poses.shape == (1, num_frames, 4, 4)


def embedded(folder: Path, width: int = 8) -> dict[str, torch.Tensor]:
    """An artifact of two samples with embeddings of their captions: what is written, by caption."""
    given = {
        caption: torch.randn(number, width).bfloat16() for number, caption in enumerate(["", "room 0", "room 1"], 1)
    }
    writer = samples.write(folder, [])
    found = [samples.sample(number) for number in range(2)]
    writer.append([({**facts, "text": embeddings.key(facts["caption"])}, tensors) for facts, tensors in found])
    writer.finish({"latent_shape": samples.SHAPE})
    embeddings.write(folder, {embeddings.key(caption): rows for caption, rows in given.items()})
    return given


def test_text_is_the_kept_embeddings_with_zeros_behind(tmp_path):
    given = embedded(tmp_path)
    conditions = loader.load([tmp_path], EMBEDDED).batch([1, 0, 1], num_latents=2).conditions
    assert (conditions.text.shape, conditions.text.dtype) == ((3, 16, 8), torch.float32)
    for row, caption in zip([*conditions.text, *conditions.empty], ["room 1", "room 0", "room 1", ""], strict=True):
        rows = given[caption].float()
        assert torch.equal(row[: len(rows)], rows)
        assert not row[len(rows) :].any()


def test_dropped_text_is_the_empty_prompt(dataset, tmp_path):
    embedded(tmp_path / "embedded")
    dropped = torch.tensor([True, False])
    words = dataset.batch([0, 1], num_latents=1).conditions
    assert torch.equal(words.without_text(dropped).text, words.text * ~dropped[:, None])
    kept = loader.load([tmp_path / "embedded"], EMBEDDED).batch([0, 1], num_latents=1).conditions
    assert kept.empty.any()
    assert torch.equal(kept.without_text(dropped).text, torch.stack([kept.empty[0], kept.text[1]]))


def test_models_with_words_of_their_own_need_no_embeddings_and_use_none(dataset, tmp_path):
    embedded(tmp_path / "embedded")
    batch = loader.load([tmp_path / "embedded"], WORDS).batch([0, 1], num_latents=2)
    assert torch.equal(batch.conditions.text, dataset.batch([0, 1], num_latents=2).conditions.text)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (replace(EMBEDDED, text_width=4096), "embeddings of width 8; the model's text_width is 4096"),
        (replace(EMBEDDED, text_tokens=2), "a caption has 3 tokens; the model's text_tokens is 2"),
    ],
)
def test_embeddings_that_the_model_cannot_take_are_refused(tmp_path, model, said):
    embedded(tmp_path)
    with pytest.raises(ValueError, match=said):
        loader.load([tmp_path], model).batch([1], num_latents=1)


def test_samples_without_embeddings_or_of_two_text_encoders_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"has no captions\.safetensors; `relic shard` writes it"):
        loader.load([tmp_path], EMBEDDED)
    embedded(tmp_path / "a")
    embedded(tmp_path / "b", width=4)
    with pytest.raises(ValueError, match=r"widths \[4, 8\]; all must come from one text encoder"):
        loader.load([tmp_path / "a", tmp_path / "b"], EMBEDDED)


def test_training_on_embeddings_loads_no_text_encoder(tmp_path):
    embedded(tmp_path)
    script = (
        "import sys\nfrom pathlib import Path\nfrom relic.data import loader\nfrom relic.model import config\n"
        "from relic.train import distill, student_init, teacher\n"
        f"dataset = loader.load([Path({str(tmp_path)!r})], config.Transformer(text_vocabulary=0, text_width=8))\n"
        "assert dataset.batch([0, 1], num_latents=2).conditions.text.any()\n"
        "assert not {'transformers', 'diffusers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_length_that_a_sample_does_not_have_is_refused(dataset):
    with pytest.raises(ValueError, match="sample walk-2 has 4 latents; 5 are asked for"):
        dataset.batch([2], num_latents=5)


def test_a_training_that_resumes_sees_the_batches_of_one_that_went_on(tmp_path):
    samples.write(tmp_path, [[0, 1, 2], [3, 4]])

    def seen(steps) -> list[torch.Tensor]:
        dataset = loader.load([tmp_path], WORDS)
        return [dataset.batch(dataset.indices(0, step, 2), num_latents=3).latents for step in steps]

    whole, resumed = seen(range(9)), seen(range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))


def test_ranks_share_the_global_batch(dataset):
    whole = dataset.indices(0, 5, 4)
    assert dataset.indices(0, 5, 4, rank=0, world=2) + dataset.indices(0, 5, 4, rank=1, world=2) == whole


def test_small_data_is_read_once(dataset, tmp_path):
    first = dataset.batch([0, 1], num_latents=4).latents
    (tmp_path / "shard-00000.bin").unlink()
    assert torch.equal(dataset.batch([0, 1], num_latents=4).latents, first)
    with pytest.raises(ValueError, match="missing"):
        dataset.batch([0, 2], num_latents=4)


def test_large_data_is_read_every_time(tmp_path):
    samples.write(tmp_path, [[0, 1]])
    dataset = loader.load([tmp_path], WORDS, cache_bytes=10)
    dataset.batch([0, 1], num_latents=4)
    assert dataset.cache == {}


def test_joined_parts_load_as_the_parts_do(tmp_path):
    parts = [tmp_path / "shard" / (digit * artifacts.KEY_LENGTH) for digit in "01"]
    samples.write(parts[0], [[0, 1]])
    samples.write(parts[1], [[2]])
    out = tmp_path / "join"
    out.mkdir()
    join.main(parts=parts, out=out, run=Run.silent())
    joined, apart = loader.load([out], WORDS), loader.load(parts, WORDS)
    assert len(joined) == len(apart) == 3
    assert torch.equal(joined.batch([2, 0], num_latents=4).latents, apart.batch([2, 0], num_latents=4).latents)


def test_rare_actions_are_drawn_more_often(tmp_path):
    writer = samples.write(tmp_path, [])
    shares = [[1.0, *[0.0] * 12]] * 9 + [[0.5, 0.5, *[0.0] * 11]]
    writer.append([samples.sample(number, share=share) for number, share in enumerate(shares)])
    writer.finish({"latent_shape": samples.SHAPE})
    balanced, plain = loader.load([tmp_path], WORDS), loader.load([tmp_path], WORDS, max_weight=1)
    times = [sum(d.indices(0, step, 10).count(9) for step in range(40)) / 40 for d in (balanced, plain)]
    assert times[1] == 1
    assert times[0] == pytest.approx(2, rel=0.05)


def test_samples_of_two_shapes_are_refused(tmp_path):
    samples.write(tmp_path / "a", [[0]])
    samples.write(tmp_path / "b", [[1]], latent_shape=[2, 3, 8])
    with pytest.raises(ValueError, match=r"latents of \[\(2, 3, 4\), \(2, 3, 8\)\]"):
        loader.load([tmp_path / "a", tmp_path / "b"], WORDS)


def test_no_samples_are_refused(tmp_path):
    samples.write(tmp_path, [])
    with pytest.raises(ValueError, match="no samples in"):
        loader.load([tmp_path], WORDS)


def test_the_scale_of_the_actions_is_the_whole_clips(tmp_path):
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 2, 3] = [0, 1, 2, 3, 4, 7, 10, 13, 16]  # steps of 1, then of 3: the mean is 2
    actions, integrated = controls(poses, Actions())
    np.testing.assert_allclose(actions[1:5, 0], 0.5)
    np.testing.assert_allclose(integrated[4, 2, 3], 2.0)
