import numpy as np
import pytest

from relic.data import captions


def flat(*colour: int) -> np.ndarray:
    return np.full((4, 8, 8, 3), colour, np.uint8)


def test_a_caption_says_light_colour_and_place():
    found = captions.describe(flat(60, 40, 20), place="freedoom2/MAP01", tags=("indoor", "corridor"))
    assert found == "a dark brown indoor corridor of freedoom2 MAP01"


def test_tags_of_two_words_are_details():
    tags = ("outdoor", "courtyard", "brick walls", "moss floor")
    found = captions.describe(flat(140, 140, 140), place="house 7", tags=tags)
    assert found == "a well-lit grey outdoor courtyard of house 7 with brick walls and moss floor"


def test_a_place_without_tags_still_has_a_caption():
    assert captions.describe(flat(60, 60, 60), place="a film", tags=()) == "a dim grey place of a film"


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((0, 0, 0), "grey"),
        ((200, 20, 20), "red"),
        ((20, 200, 20), "green"),
        ((20, 20, 200), "blue"),
        ((200, 20, 60), "red"),
    ],
)
def test_colours_have_their_names(colour, word):
    assert captions.colour_of(flat(*colour)) == word


def test_composed_captions_say_nothing_of_the_camera():
    for colour in np.random.default_rng(0).integers(0, 256, (50, 3)):
        caption = captions.describe(flat(*colour), place="freedoom1 E1M1", tags=("indoor", "hall", "tiles floor"))
        assert captions.forbidden_words(caption) == []


@pytest.mark.parametrize(
    "caption", ["The camera pans left", "a hall, slowly Panning", "walking through a hall", "zoom-in on a door"]
)
def test_camera_and_motion_words_are_refused(caption):
    with pytest.raises(ValueError, match="only static attributes"):
        captions.check(caption, "take.json")


def test_words_that_only_contain_such_a_word_are_fine():
    caption = "a panelled room with a rolled carpet beside a  driveway"
    assert captions.check(caption, "take.json") == "a panelled room with a rolled carpet beside a driveway"


def test_an_empty_caption_is_refused():
    with pytest.raises(ValueError, match=r"take\.json is empty"):
        captions.check(" ", "take.json")
