"""Does the memory hold what was seen? The shipped base, walking there and back in the rollout that serves.

Every walk turns after two thirds, and only returns beyond the window and the chunk count, so that what is seen again
can come from the image, the pooled tokens or nowhere. Compared walk by walk, with the recorded frames as the truth.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from relic import recipes
from relic.data import curate
from relic.data.config import Curate
from relic.evaluate import predict, probes
from relic.evaluate.walks import read
from relic.model import weights
from relic.model.transformer import Transformer
from relic.pretrained import words
from relic.tracking import Run

pytestmark = pytest.mark.slow
RECIPE = recipes.tiny()
CFG = RECIPE.evaluate
Behind = Callable[[predict.Generate], dict[str, float]]


def model() -> Transformer:
    return weights.load_transformer(weights.start_folder("tiny/base"))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Behind:
    """By how much a way of remembering is behind the tiny recipe's, in dB to the true frames at the returns."""
    folder = tmp_path_factory.mktemp("walks")
    curate.main(Curate(train=0, known=24, unseen=0, seed=7), out=folder, run=Run.silent())
    walks = read([folder], "known", 24, 61, CFG.actions)
    assert walks is not None
    back, codec = walks.returning(CFG.actions), weights.load_codec(weights.start_folder("tiny/codec"))
    given = back.conditions(words.of(RECIPE.teacher.model, "", "cpu"))

    def returned(generate: predict.Generate, folder: Path) -> dict:
        return probes.returned(back, predict.videos(generate, codec, back.frames[:, 0], given, CFG, folder), CFG)

    whole = returned(predict.few_steps(model(), CFG), tmp_path_factory.mktemp("whole"))

    def compared(generate: predict.Generate) -> dict[str, float]:
        less = probes.behind(returned(generate, tmp_path_factory.mktemp("other")), whole)["psnr_to_truth_db"]
        assert less is not None
        return less

    return compared


@pytest.mark.parametrize("permute", [probes.exchanged, probes.shuffled])
def test_permuting_the_pooled_tokens_lowers_the_match_with_the_true_return(
    behind: Behind, permute: probes.Permute
) -> None:
    less = behind(probes.permuted(model(), CFG, permute))
    assert less["mean"] > 2 * less["error"] > 0
    assert less["better_in"] >= 16


def test_without_the_pooled_tokens_the_true_return_is_matched_less(behind: Behind) -> None:
    window = probes.memories(CFG)["window only"]
    less = behind(predict.few_steps(model(), replace(CFG, rollout=replace(CFG.rollout, memory=window))))
    assert less["mean"] > 2 * less["error"] > 0
    assert less["better_in"] >= 16
