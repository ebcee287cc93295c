from pathlib import Path

import numpy as np
import pytest
import tiny_umt5
import torch
from synthetic import recording, track

from relic.data import clip, embeddings, join, palindrome, shard, shards
from relic.data.clip import Clip
from relic.data.config import Shard
from relic.geometry.actions import annotate, integrate
from relic.geometry.config import Actions
from relic.model import config, weights
from relic.model.codec import Codec
from relic.model.text import padded
from relic.pretrained import text
from relic.tracking import Run

SMALL = config.Codec(latent_channels=4, decoder_widths=(4, 4, 4, 4))


def write_clips(folder: Path, lengths: dict[str, int], *, kept: bool = True, region: str = "train") -> Path:
    entries = []
    for number, (name, num_frames) in enumerate(lengths.items()):
        r = recording(number, poses=track(turns=np.full(num_frames - 1, 2.0 + number)))
        one = Clip(
            id=name, frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world, place=r.place,
            region=region, seed=0, tags=r.tags, caption=f"a room called {name}",
        )  # fmt: skip
        entries.append({**clip.write_clip(folder, one, actions=Actions(), reasons=[], measures={}), "kept": kept})
    clip.write_index(folder, entries, {})
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    weights.save(Codec(SMALL), folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), {f"walk-{i}": 13 for i in range(7)})


def sharded(
    clips: Path, codec: Path, out: Path, cfg: Shard | None = None, run: Run | None = None, **part
) -> list[dict]:
    out.mkdir(exist_ok=True)
    shard.main(cfg or Shard(), clips=[clips], codec=[codec], out=out, run=run or Run.silent(), **part)
    return shards.read_index(out)["samples"]


def read(out: Path, entry: dict) -> dict[str, torch.Tensor]:
    return shards.read(shards.LocalShards(out), entry)


def test_a_sample_is_the_clip_through_the_codec(clips, codec, tmp_path):
    entry = sharded(clips, codec, tmp_path)[0]
    found = clip.read_clip(clips, clip.read_index(clips)[0])
    frames = torch.from_numpy(found.frames).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        expected = weights.load_codec(codec).encode(frames)[0]
    latents = read(tmp_path, entry)["latents"]
    assert latents.dtype == torch.float16
    assert latents.shape == (4, 4, 8, 12)
    assert (latents.float() - expected).std() < 0.02 * expected.std()


def test_poses_are_the_integral_of_the_actions_that_are_kept(clips, codec, tmp_path):
    for entry in sharded(clips, codec, tmp_path):
        found = read(tmp_path, entry)
        assert torch.equal(found["poses"], integrate(found["actions"], Actions()).float())
        share = (found["actions"][1:] > 0).double().mean(0)
        np.testing.assert_allclose(entry["action_share"], share, atol=1e-4)


def test_a_palindrome_is_encoded_from_reversed_pixels_and_poses(clips, codec, tmp_path):
    entries = {e["id"]: e for e in sharded(clips, codec, tmp_path, Shard(palindromes=1.0))}
    assert len(entries) == 14
    entry = entries["walk-2-palindrome"]
    assert entry["palindrome"]
    assert entry["clip"] == "walk-2"
    assert entry["caption"] == "a room called walk-2"
    source = clip.read_clip(clips, clip.read_index(clips)[2])
    order = palindrome.indices(13, palindrome.pivot_of(13, seed=0, clip="walk-2", share=1.0))
    expected = annotate(torch.from_numpy(source.poses[order]), Actions()).float()
    assert torch.equal(read(tmp_path, entry)["actions"], expected)


def test_parts_share_the_clips_and_miss_none(clips, codec, tmp_path):
    whole = {e["id"] for e in sharded(clips, codec, tmp_path / "whole")}
    parts = [{e["id"] for e in sharded(clips, codec, tmp_path / str(p), part=p, parts=3)} for p in range(3)]
    assert set().union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)


def test_a_clip_is_the_same_sample_in_any_part_and_batch(clips, codec, tmp_path):
    one = {e["id"]: e["sha256"] for e in sharded(clips, codec, tmp_path / "a", Shard(batch=8))}
    for part in range(2):
        for entry in sharded(clips, codec, tmp_path / f"b{part}", Shard(batch=2), part=part, parts=2):
            assert entry["sha256"] == one[entry["id"]]


class Killed(Exception):
    pass


class Killing(Run):
    """Dies after so many batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_call_goes_on_to_the_same_files(clips, codec, tmp_path, after, monkeypatch):
    cfg = Shard(batch=2, shard_bytes=20_000)
    whole = sharded(clips, codec, tmp_path / "whole", cfg)
    with pytest.raises(Killed):
        sharded(clips, codec, tmp_path / "killed", cfg, run=Killing(after))
    encoded = []
    encode = shard.encode.encode
    monkeypatch.setattr(
        shard.encode, "encode", lambda codec, videos, device: encoded.append(1) or encode(codec, videos, device)
    )
    assert sharded(clips, codec, tmp_path / "killed", cfg) == whole
    assert len(encoded) == 4 - after
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_clips_of_several_lengths_are_cut_to_whole_latents(codec, tmp_path):
    clips = write_clips(tmp_path / "clips", {"a": 9, "b": 12, "c": 13, "d": 9})
    entries = sharded(clips, codec, tmp_path / "out", Shard(palindromes=0.0))
    assert [e["num_latents"] for e in entries] == [3, 3, 4, 3]
    assert read(tmp_path / "out", entries[1])["actions"].shape == (9, 13)


def test_only_kept_clips_of_the_regions_are_taken(clips, codec, tmp_path):
    dropped = write_clips(tmp_path / "dropped", {"x": 9}, kept=False)
    known = write_clips(tmp_path / "known", {"y": 9}, region="known")
    assert len(clip.entries_of([clips, dropped, known], ("train",))) == 7
    assert len(clip.entries_of([clips, dropped, known], ("train", "known"))) == 8


def test_a_part_without_clips_is_refused(clips, codec, tmp_path):
    with pytest.raises(ValueError, match="part 7 of 8 has no clip: 7 clips are kept in train"):
        sharded(clips, codec, tmp_path, part=7, parts=8)


def test_a_clip_too_short_for_a_second_latent_is_refused(codec, tmp_path):
    clips = write_clips(tmp_path / "clips", {"short": 4})
    with pytest.raises(ValueError, match="clip short has 4 frames"):
        sharded(clips, codec, tmp_path / "out")


def test_a_codec_that_gives_no_numbers_is_refused(clips, tmp_path):
    broken = Codec(SMALL)
    broken.std.fill_(0)
    weights.save(broken, tmp_path / "codec")
    with pytest.raises(ValueError, match="clip walk-0 has latents that are not finite"):
        sharded(clips, tmp_path / "codec", tmp_path / "out")


def test_the_summary_counts_what_is_there(clips, codec, tmp_path):
    cfg = Shard(palindromes=1.0, shard_bytes=30_000)
    summary = shard.main(cfg, clips=[clips], codec=[codec], out=tmp_path, run=Run.silent())
    files = list(tmp_path.glob("shard-*.bin"))
    assert (summary["samples"], summary["palindromes"], summary["latents"]) == (14, 7, 56)
    assert summary["shards"] == len(files)
    assert summary["bytes"] == sum(path.stat().st_size for path in files)
    assert summary["action_share"]["pan_right"] > summary["action_share"]["pan_left"] > 0


@pytest.fixture(scope="module")
def umt5(tmp_path_factory) -> Path:
    return tiny_umt5.write(tmp_path_factory.mktemp("umt5"))


def test_captions_and_the_empty_prompt_are_embedded_by_their_keys(clips, codec, umt5, tmp_path):
    entries = sharded(clips, codec, tmp_path, Shard(palindromes=1.0, text_encoder=str(umt5)))
    found, encoder = embeddings.read([tmp_path]), text.load(umt5, "cpu")
    captions = {entry["text"]: entry["caption"] for entry in entries} | {embeddings.key(""): ""}
    assert found.keys() == captions.keys()
    assert len(found) == 8
    for key, caption in captions.items():
        assert torch.equal(found[key], encoder.tokens_of(caption))
    made = padded([found[key] for key in captions], 512).float()
    assert torch.equal(made, encoder.embed(list(captions.values())).float())


def test_a_caption_is_embedded_once(clips, codec, umt5, tmp_path, monkeypatch):
    asked = []
    tokens_of = text.TextEncoder.tokens_of
    monkeypatch.setattr(
        text.TextEncoder, "tokens_of", lambda self, caption: asked.append(caption) or tokens_of(self, caption)
    )
    embeddings.embed(["a room", "a walk", "a room", ""], umt5, tmp_path, "cpu")
    embeddings.embed(["a room"], umt5, tmp_path, "cpu")  # as a killed call does again
    assert asked == ["", "a room", "a walk"]


def test_joined_parts_have_all_embeddings(clips, codec, umt5, tmp_path):
    cfg, parts = Shard(text_encoder=str(umt5)), [tmp_path / "0", tmp_path / "1"]
    for number, part in enumerate(parts):
        sharded(clips, codec, part, cfg, part=number, parts=2)
    (tmp_path / "whole").mkdir()
    join.main(parts=parts, out=tmp_path / "whole", run=Run.silent())
    apart, whole = embeddings.read(parts), embeddings.read([tmp_path / "whole"])
    assert len(whole) == 8
    assert all(torch.equal(whole[key], rows) for key, rows in apart.items())


def test_a_part_without_embeddings_is_not_joined_to_one_that_has_them(clips, codec, umt5, tmp_path):
    sharded(clips, codec, tmp_path / "0", Shard(text_encoder=str(umt5)), part=0, parts=2)
    sharded(clips, codec, tmp_path / "1", part=1, parts=2)
    (tmp_path / "whole").mkdir()
    with pytest.raises(ValueError, match=r"1 has no captions\.safetensors; `relic shard` writes it"):
        join.main(parts=[tmp_path / "0", tmp_path / "1"], out=tmp_path / "whole", run=Run.silent())


def test_without_a_text_encoder_the_samples_are_those_with_one_and_nothing_is_beside(clips, codec, umt5, tmp_path):
    plain = sharded(clips, codec, tmp_path / "plain")
    embedded = sharded(clips, codec, tmp_path / "embedded", Shard(text_encoder=str(umt5)))
    assert plain == [{name: value for name, value in entry.items() if name != "text"} for entry in embedded]
    assert not (tmp_path / "plain" / embeddings.FILE).exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"regions": ("test",)}, "regions are"),
        ({"palindromes": 1.5}, "palindromes is 1.5"),
        ({"batch": 0}, "batch is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_dials_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Shard(**wrong)
