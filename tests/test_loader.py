import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import samples
import torch

from relic import artifacts
from relic.data import embeddings, join, loader, shards
from relic.data.config import Loader
from relic.data.encode import controls
from relic.geometry.config import Actions
from relic.model import config
from relic.model.text import tokenize
from relic.parallel.mesh import Mesh
from relic.tracking import Run

WORDS = config.Transformer()
EMBEDDED = replace(WORDS, text_vocabulary=0, text_width=8)
AT_ONCE = Loader(retries=0)  # damage is damage


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


def rows_of(dataset: loader.Dataset, step: int, world: int) -> list[list[int]]:
    """The samples of a step's batch of 8 by rank."""
    whole = dataset.indices(0, step, 8)
    return [[whole[row] for row in Mesh(rank=rank, world=world).rows(8)] for rank in range(world)]


@pytest.mark.parametrize("worlds", [[2] * 6, [4] * 6, [4] * 3 + [2] * 3, [1] * 2 + [8] * 4])
@pytest.mark.parametrize("mixture", [(), (3.0, 1.0)])
def test_every_sample_comes_at_its_place_whatever_the_processes(tmp_path, worlds, mixture):
    folders = [tmp_path / "a", tmp_path / "b"]
    samples.write(folders[0], [[0, 1, 2], [3, 4]])
    samples.write(folders[1], [[5, 6]])

    def seen(world_of: list[int]) -> list[float]:
        found = []
        for step, world in enumerate(world_of):  # a process that starts here knows the step and nothing else
            ranks = [loader.load(folders, WORDS, Loader(mixture=mixture)) for _ in range(world)]
            requests = [iter([(rows, 1)]) for rows in rows_of(ranks[0], step, world)]
            parts = [next(each.ahead(request)) for each, request in zip(ranks, requests, strict=True)]
            found += [value for part in parts for value in part.latents[:, 0, 0, 0, 0].tolist()]
        return found

    assert seen(worlds) == seen([1] * 6)


def test_a_mixture_draws_each_artifact_by_its_share(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    samples.write(folders[0], [[0, 1, 2, 3, 4, 5, 6, 7]])
    samples.write(folders[1], [[8, 9]])
    counts = []
    for mixture in ((), (1.0, 3.0)):
        dataset = loader.load(folders, WORDS, Loader(mixture=mixture, max_weight=1))
        counts.append(sum(index < 8 for step in range(100) for index in dataset.indices(0, step, 100)))
    assert counts == [8000, 2500]


def test_mixtures_and_dials_that_do_not_fit_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"mixture is \(1.0, 1.0\) for 1 artifact"):
        loader.load([tmp_path], WORDS, Loader(mixture=(1.0, 1.0)))
    samples.write(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no samples to draw from"):
        loader.load([tmp_path, tmp_path / "empty"], WORDS, Loader(mixture=(1.0, 1.0)))
    for mixture in ((0.0,), (1.0, -1.0), (1.0, 5000.0), (1.0, float("nan")), (float("inf"),)):
        with pytest.raises(ValueError, match="none below a thousandth of their sum"):
            Loader(mixture=mixture)
    with pytest.raises(ValueError, match="damaged is 'repair'; allowed are stop, skip"):
        Loader(damaged="repair")
    with pytest.raises(ValueError, match=r"max_weight is 0\.5"):
        Loader(max_weight=0.5)
    with pytest.raises(ValueError, match=r"prefetch -1, .* none may be negative"):
        Loader(prefetch=-1)


def test_small_data_is_read_once(tmp_path):
    samples.write(tmp_path, [[0, 1, 2]])
    dataset = loader.load([tmp_path], WORDS, AT_ONCE)
    first = dataset.batch([0, 1], num_latents=4).latents
    (tmp_path / "shard-00000.bin").unlink()
    assert torch.equal(dataset.batch([0, 1], num_latents=4).latents, first)
    with pytest.raises(ValueError, match="missing"):
        dataset.batch([0, 2], num_latents=4)


def test_large_data_is_read_every_time(tmp_path):
    samples.write(tmp_path, [[0, 1]])
    dataset = loader.load([tmp_path], WORDS, Loader(memory_bytes=10))
    dataset.batch([0, 1], num_latents=4)
    assert dataset.cache == {}


def test_batches_fetched_ahead_are_those_fetched_when_needed(dataset):
    requests = [([0, 3], 4), ([2], 1), ([4, 1, 0], 3)]
    for ahead, (indices, num_latents) in zip(dataset.ahead(iter(requests)), requests, strict=True):
        now = dataset.batch(indices, num_latents=num_latents)
        assert torch.equal(ahead.latents, now.latents)
        assert torch.equal(ahead.conditions.actions, now.conditions.actions)
        assert torch.equal(ahead.conditions.text, now.conditions.text)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_as_many_batches_are_fetched_ahead_as_the_dial_says(tmp_path, prefetch):
    samples.write(tmp_path, [[0, 1]])
    asked: list[int] = []

    def requests():
        for number in range(9):
            asked.append(number)
            yield [0], 1

    batches = loader.load([tmp_path], WORDS, Loader(prefetch=prefetch)).ahead(requests())
    next(batches)
    assert len(asked) == 1 + prefetch
    next(batches)
    assert len(asked) == 2 + prefetch
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 1])
def test_who_fetches_ahead_waits_only_for_what_is_not_there(tmp_path, monkeypatch, prefetch):
    samples.write(tmp_path, [[0, 1]])
    read = shards.read
    monkeypatch.setattr(shards, "read", lambda *given, **kw: time.sleep(0.2) or read(*given, **kw))
    dataset = loader.load([tmp_path], WORDS, Loader(prefetch=prefetch, memory_bytes=0))
    batches, waits = dataset.ahead(iter([([0], 1)] * 3)), []
    for _ in range(3):
        began = time.monotonic()
        next(batches)
        waits.append(time.monotonic() - began)
        time.sleep(0.4)  # a step
    assert waits[0] >= 0.2
    assert all((wait < 0.2) == bool(prefetch) for wait in waits[1:])


def test_what_goes_wrong_ahead_is_raised_in_its_place(dataset):
    batches = dataset.ahead(iter([([0], 4), ([1], 9), ([2], 4)]))
    assert len(next(batches).latents) == 1
    with pytest.raises(ValueError, match="sample walk-1 has 4 latents; 9 are asked for"):
        next(batches)


@pytest.mark.parametrize("end", ["closed", "collected", "raised"])
def test_the_threads_end_with_the_batches(dataset, end):
    before = set(threading.enumerate())
    batches = dataset.ahead(iter([([0], 4), ([1], 9 if end == "raised" else 4)] * 9))
    next(batches)
    mine = set(threading.enumerate()) - before
    assert mine
    if end == "closed":
        batches.close()
    elif end == "raised":
        with pytest.raises(ValueError, match="9 are asked for"):
            next(batches)
    else:
        del batches
    for thread in mine:
        thread.join(5)
    assert not any(thread.is_alive() for thread in mine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gets_the_batches_that_a_processor_gets(dataset):
    requests = [(dataset.indices(0, step, 4), 4) for step in range(9)]
    for there, here in zip(dataset.ahead(iter(requests), device="cuda"), dataset.ahead(iter(requests)), strict=True):
        assert there.latents.is_cuda
        assert torch.equal(there.latents.cpu(), here.latents)
        assert torch.equal(there.conditions.poses.cpu(), here.conditions.poses)


def damaged(folder: Path, numbers: list[int]) -> Path:
    """An artifact of 8 samples, in some of which a byte is changed."""
    entries = samples.write(folder, [[0, 1, 2, 3], [4, 5, 6, 7]]).entries
    with (folder / "shard-00000.bin").open("r+b") as file:
        for number in numbers:
            file.seek(entries[number]["offset"] + entries[number]["length"] - 1)
            file.write(b"\x55")
    return folder


def test_a_damaged_sample_is_named_and_stopped_at(tmp_path):
    dataset = loader.load([damaged(tmp_path, [2])], WORDS, AT_ONCE)
    with pytest.raises(ValueError, match=r"shard-00000\.bin: sample walk-2 \(\d+ bytes from byte \d+ on\) has sha256"):
        dataset.batch([1, 2], num_latents=4)


def test_a_skipped_sample_is_counted_and_every_process_takes_the_same_whole_one(tmp_path, capsys):
    folder, cfg = damaged(tmp_path, [2, 3, 6]), replace(AT_ONCE, damaged="skip")
    order = [list(range(8)), [7, 6, 5, 4, 3, 2, 1, 0]]
    one, other = (loader.load([folder], WORDS, cfg) for _ in order)
    taken = [d.batch(rows, num_latents=2).latents[:, 0, 0, 0, 0] for d, rows in zip((one, other), order, strict=True)]
    assert torch.equal(taken[0], taken[1].flip(0))
    whole = [0, 1, 4, 5, 7]
    assert set(taken[0].tolist()) == set(whole)
    assert taken[0][whole].tolist() == whole
    assert (one.skipped, other.skipped) == (3, 3)
    assert one.batch([2], num_latents=2).conditions.text.tolist() == tokenize([f"room {int(taken[0][2])}"], 16).tolist()
    assert one.skipped == 4
    assert "skipped: " in (said := capsys.readouterr().out)
    assert said.count("sample walk-2 ") == 2  # once by each


def test_a_substitute_is_of_the_same_set(tmp_path):
    folders = [tmp_path / "a", damaged(tmp_path / "b", [2])]
    samples.write(folders[0], [[20, 21, 22, 23]])
    dataset = loader.load(folders, WORDS, replace(AT_ONCE, damaged="skip", mixture=(1.0, 1.0)))
    assert dataset.batch([4 + 2], num_latents=1).latents.max() < 8


def test_a_set_that_is_damaged_all_over_is_stopped_at(tmp_path):
    dataset = loader.load([damaged(tmp_path, list(range(8)))], WORDS, replace(AT_ONCE, damaged="skip"))
    with pytest.raises(ValueError, match="sample walk-3 is damaged, and so is each of the 16 samples drawn"):
        dataset.batch([3], num_latents=2)


def test_a_store_that_cannot_be_reached_is_not_skipped(tmp_path, monkeypatch):
    samples.write(tmp_path, [[0, 1]])

    def fails(*_):
        raise OSError("s3://bucket/shard-00000.bin cannot be reached")

    monkeypatch.setattr(shards.LocalShards, "read", fails)
    dataset = loader.load([tmp_path], WORDS, replace(AT_ONCE, damaged="skip"))
    with pytest.raises(OSError, match="cannot be reached"):
        dataset.batch([0], num_latents=1)


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
    balanced, plain = loader.load([tmp_path], WORDS), loader.load([tmp_path], WORDS, Loader(max_weight=1))
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
