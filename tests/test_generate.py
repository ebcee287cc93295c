"""`relic generate`: a picture and a script of actions become a video."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import exports
import numpy as np
import pytest
import tiny_umt5
from PIL import Image
from tiny_models import CFG, transformer

from relic import __main__ as command
from relic import tracking
from relic.data import video
from relic.evaluate import predict
from relic.evaluate.config import Evaluate
from relic.generate import script
from relic.geometry.actions import integrate
from relic.geometry.config import Actions
from relic.model import precision, weights
from relic.model.conditions import Conditions
from relic.model.text import tokenize
from relic.serve import film
from relic.serve.config import Film

UNIT = Actions(degrees_per_unit=2.0)
SIZES = {"dolly_in": 1.0, "dolly_out": 1.0, "pan_left": 2.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, codec, a picture, and a finished run of them."""
    folder = tmp_path_factory.mktemp("generate")
    weights.save(transformer(), folder / "weights")
    weights.save(exports.codec(), folder / "codec")
    Image.fromarray(exports.IMAGE).save(folder / "picture.png")
    given = exports.inputs(folder / "store")
    with pytest.MonkeyPatch.context() as patch:  # without MLflow
        patch.setenv(tracking.PARENT, tracking.RUNNER)
        export = exports.export(folder / "store", given)
    nodes = {
        "teacher": given["student"][0],
        "codec": given["codec"][0],
        "evaluate": given["evaluation"][0],
        "export": export,
    }
    (folder / "run.json").write_text(json.dumps({"nodes": nodes}))
    return folder


def options(place: Path, **dials) -> Film:
    own = {"weights": str(place / "weights"), "codec": str(place / "codec"), "height": 16, "width": 32, "unit": UNIT}
    said = {"image": str(place / "picture.png"), "actions": "w 8f, left 4f", "rollout": exports.ROLLOUT, "seed": 3}
    return Film(**{**own, **said, **dials})


def called(place: Path, out: Path, *args: str) -> int:
    given = ["--image", f"{place}/picture.png", "--actions", "w 0.5s, w+left 2f", "--out", str(out), *args]
    return command.main(["generate", *given])


def test_rows_are_usual_sizes_times_the_speed_to_the_end_of_the_chunk() -> None:
    made = film.rows(script.parse("w 2f, w+s 1f, left 2f", 16), SIZES, speed=1.5, chunk=2)
    assert len(made) == 4 * 3 + 1  # 5 frames need 2 latents after the picture's; a chunk has 2
    assert [row.nonzero().flatten().tolist() for row in made] == [[12], [0], [0], [12], *[[8]] * 9]
    assert (made[1, 0], made[5, 8]) == (1.5, 3.0)


@pytest.mark.parametrize(("chunk", "frames"), [(1, 9), (2, 13), (3, 9), (4, 13)])
def test_the_length_is_rounded_up_to_whole_chunks(chunk: int, frames: int) -> None:
    assert len(film.rows(script.parse("w 8f", 16), SIZES, speed=1, chunk=chunk)) == frames


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_the_video_is_the_one_that_evaluation_makes(place: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: False)  # its rounding depends on the cuts
    cfg = options(place, kind=kind, sampler=exports.SAMPLER)
    judged = Evaluate(num_latents=4, rollout=cfg.rollout, sampler=cfg.sampler, actions=UNIT, seed=cfg.seed)
    model = transformer()
    generate = (predict.few_steps if kind == "student" else predict.many_steps)(model, judged)
    actions = film.rows(script.parse(cfg.actions, 16), dict.fromkeys(SIZES, 1.0), speed=1, chunk=1)[None]
    given = Conditions(actions.float(), integrate(actions, UNIT).float(), tokenize([""], model.cfg.text_tokens))
    expected = predict.videos(generate, exports.codec(), exports.IMAGE[None], given, judged, tmp_path)[0].astype(int)
    assert (made := film.main(cfg, None)).shape == expected.shape
    assert np.abs(made - expected).max() <= 1  # decoded in one piece there
    assert np.abs(film.main(replace(cfg, seed=4), None) - expected).max() > 10


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_model_that_takes_embeddings_hears_the_caption_by_umt5(place: Path, tmp_path: Path, kind: str) -> None:
    model = transformer(replace(CFG, text_vocabulary=0, text_width=tiny_umt5.WIDTH, text_tokens=16))
    weights.save(model, tmp_path / "model")
    cfg = options(place, kind=kind, sampler=exports.SAMPLER, weights=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="give umT5's folder as text_encoder"):
        film.main(cfg, None)
    cfg = replace(cfg, text_encoder=str(tiny_umt5.write(tmp_path / "umt5")))
    room, walk = (film.main(replace(cfg, caption=caption), None) for caption in ("a room", "walk 9"))
    assert not np.array_equal(room, walk)


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_run_says_everything_about_its_models(place: Path, tmp_path: Path, kind: str, capsys) -> None:
    assert called(place, tmp_path / "new" / "walk.mp4", "--run", f"{place}/run.json", "--kind", kind) == 0
    assert "walk.mp4: 13 frames, 0.8 s" in capsys.readouterr().out
    assert video.read(tmp_path / "new" / "walk.mp4").shape == (13, 16, 32, 3)


def test_an_export_alone_gives_the_students_walk(place: Path, tmp_path: Path) -> None:
    export = json.loads((place / "run.json").read_text())["nodes"]["export"]
    for name, args in {"a": ["--run", f"{place}/run.json"], "b": ["--export", export]}.items():
        assert called(place, tmp_path / f"{name}.mp4", *args) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_dials_of_an_exports_walk_can_be_changed(place: Path) -> None:
    source = film.find(f"{place}/run.json", "")
    usual = film.options(source)(image=f"{place}/picture.png", actions="w+left 6f", run="run.json")
    turned = replace(usual, unit=Actions(degrees_per_unit=30.0))
    hasty = replace(usual, rollout=replace(exports.ROLLOUT, timesteps=(1000.0,)))
    expected = film.main(usual, source).astype(int)
    assert all(np.abs(film.main(cfg, source) - expected).max() > 10 for cfg in (turned, hasty))


def test_dials_of_the_run_are_the_defaults_and_can_be_changed(place: Path) -> None:
    kind = film.options(film.find(f"{place}/run.json", ""))
    cfg = kind(image="", actions="", run="run.json")
    assert (asdict(cfg.rollout), cfg.sampler) == (asdict(exports.ROLLOUT), exports.SAMPLER)
    assert (cfg.unit, cfg.fps, cfg.height, cfg.width) == (UNIT, 16, 16, 32)
    assert kind(image="", actions="", run="run.json", width=64).width == 64


def test_help_beside_a_run_shows_its_dials_and_what_they_mean(place: Path, capsys) -> None:
    assert command.main(["generate", "--run", f"{place}/run.json", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"--sampler.steps INT (default: {exports.SAMPLER.steps})" in said
    assert "--speed FLOAT multiplies the usual size of every action" in said


def test_poses_are_in_the_unit_of_the_options(place: Path) -> None:
    made = [film.main(options(place, kind="teacher", unit=Actions(degrees_per_unit=d)), None) for d in (2.0, 30.0)]
    assert np.abs(made[0].astype(int) - made[1]).max() > 10


def test_a_picture_of_another_shape_is_cut_to_the_videos(place: Path, tmp_path: Path) -> None:
    square = np.zeros((40, 40, 3), np.uint8)
    square[10:30] = 200  # what a 2:1 cut leaves
    Image.fromarray(square).save(tmp_path / "square.png")
    found = film.picture(tmp_path / "square.png", height=16, width=32)
    assert found.shape == (16, 32, 3)
    assert (found[2:-2] == 200).all()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the model is not clear; give --run (run.json), or --export"),
        (["--run", "{}/run.json", "--weights", "w", "--codec", "c"], "the model is not clear"),
        (["--weights", "w"], "the model is not clear"),
        (["--weights", "w", "--codec", "c"], "the video is 0x0 pixels; give --width and --height"),
        (["--run", "{}/no.json"], "no.json is not there"),
        (["--run", "{}/run.json", "--kind", "pupil"], "kind is 'pupil'; allowed are student and teacher"),
        (["--export", "{}/export", "--kind", "teacher"], "export is not an export: it has no manifest.json"),
        (["--run", "{}/run.json", "--actions", "w 1s, d 1s"], "'truck_right'; this world's actions are dolly_in, pan_"),
        (["--run", "{}/run.json", "--actions", "forward 1s"], "there is no key 'forward'; did you mean"),
        (["--run", "{}/run.json", "--image", "no.png"], "image is 'no.png', which is no file; give a PNG, JPEG or"),
        (["--run", "{}/run.json", "--image", "{}/run.json"], "the image is of no known format; allowed is a PNG, JPEG"),
        (["--run", "{}/run.json", "--width", "40"], "the video is 40x16 pixels; allowed are multiples of 16"),
        (["--run", "{}/run.json", "--out", "walk.gif"], "out is 'walk.gif'; it must end in .mp4"),
        (["--run", "{}/run.json", "--text-encoder", "/nope"], "text_encoder is '/nope'; the model has"),
        (["--run", "{}/run.json", "--speed", "0"], "speed is 0.0 and fps 16.0; both must be above 0"),
    ],
)
def test_a_mistake_is_one_sentence(place: Path, tmp_path: Path, args: list[str], said: str, capsys) -> None:
    assert called(place, tmp_path / "walk.mp4", *(arg.format(place) for arg in args)) == 2
    assert said in (written := capsys.readouterr().err)
    assert written.count("\n") == 1


def test_an_export_has_no_teacher() -> None:
    with pytest.raises(ValueError, match="an export holds no teacher; give --run, or --weights and --codec"):
        Film(image="a.png", actions="w 1s", export="folder", kind="teacher")
