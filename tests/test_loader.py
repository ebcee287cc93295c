import numpy as np
import pytest
import samples
import torch

from relic import artifacts
from relic.data import join, loader
from relic.data.encode import controls
from relic.geometry.config import Actions
from relic.model.text import tokenize
from relic.tracking import Run


@pytest.fixture
def dataset(tmp_path) -> loader.Dataset:
    samples.write(tmp_path, [[0, 1, 2], [3, 4]])
    return loader.load([tmp_path])


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


def test_a_length_that_a_sample_does_not_have_is_refused(dataset):
    with pytest.raises(ValueError, match="sample walk-2 has 4 latents; 5 are asked for"):
        dataset.batch([2], num_latents=5)


def test_a_training_that_resumes_sees_the_batches_of_one_that_went_on(tmp_path):
    samples.write(tmp_path, [[0, 1, 2], [3, 4]])

    def seen(steps) -> list[torch.Tensor]:
        dataset = loader.load([tmp_path])
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
    dataset = loader.load([tmp_path], cache_bytes=10)
    dataset.batch([0, 1], num_latents=4)
    assert dataset.cache == {}


def test_joined_parts_load_as_the_parts_do(tmp_path):
    parts = [tmp_path / "shard" / (digit * artifacts.KEY_LENGTH) for digit in "01"]
    samples.write(parts[0], [[0, 1]])
    samples.write(parts[1], [[2]])
    out = tmp_path / "join"
    out.mkdir()
    join.main(parts=parts, out=out, run=Run.silent())
    joined, apart = loader.load([out]), loader.load(parts)
    assert len(joined) == len(apart) == 3
    assert torch.equal(joined.batch([2, 0], num_latents=4).latents, apart.batch([2, 0], num_latents=4).latents)


def test_rare_actions_are_drawn_more_often(tmp_path):
    writer = samples.write(tmp_path, [])
    shares = [[1.0, *[0.0] * 12]] * 9 + [[0.5, 0.5, *[0.0] * 11]]
    writer.append([samples.sample(number, share=share) for number, share in enumerate(shares)])
    writer.finish({"latent_shape": samples.SHAPE})
    balanced, plain = loader.load([tmp_path]), loader.load([tmp_path], max_weight=1)
    times = [sum(d.indices(0, step, 10).count(9) for step in range(40)) / 40 for d in (balanced, plain)]
    assert times[1] == 1
    assert times[0] == pytest.approx(2, rel=0.05)


def test_samples_of_two_shapes_are_refused(tmp_path):
    samples.write(tmp_path / "a", [[0]])
    samples.write(tmp_path / "b", [[1]], latent_shape=[2, 3, 8])
    with pytest.raises(ValueError, match=r"latents of \[\(2, 3, 4\), \(2, 3, 8\)\]"):
        loader.load([tmp_path / "a", tmp_path / "b"])


def test_no_samples_are_refused(tmp_path):
    samples.write(tmp_path, [])
    with pytest.raises(ValueError, match="no samples in"):
        loader.load([tmp_path])


def test_the_scale_of_the_actions_is_the_whole_clips(tmp_path):
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 2, 3] = [0, 1, 2, 3, 4, 7, 10, 13, 16]  # steps of 1, then of 3: the mean is 2
    actions, integrated = controls(poses, Actions())
    np.testing.assert_allclose(actions[1:5, 0], 0.5)
    np.testing.assert_allclose(integrated[4, 2, 3], 2.0)
