from dataclasses import fields

import pytest

from relic import recipes, steps
from relic.mistakes import UserError


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_named_after_its_function_and_has_a_config_for_every_step(name: str) -> None:
    recipe = recipes.named(name)
    assert recipe.name == name
    assert all(hasattr(recipe, step.config) for step in steps.TABLE if step.config)


def test_a_recipe_is_the_same_value_each_time() -> None:
    assert recipes.named("tiny") == recipes.named("tiny")


def test_a_dash_is_an_underscore() -> None:
    assert recipes.named("tiny-scratch") == recipes.tiny_scratch()


def test_unknown_recipe_gets_the_nearest_name_and_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"there is no recipe 'tinny'; did you mean 'tiny'[?] allowed are tiny, tiny_"):
        recipes.named("tinny")


def test_from_scratch_uses_no_start_weights() -> None:
    recipe = recipes.tiny_scratch()
    assert (recipe.codec.start, recipe.teacher.start, recipe.evaluate.base) == ("", "", "")


def test_every_docstring_says_what_was_measured_or_that_it_was_not_run() -> None:
    for recipe in recipes.RECIPES.values():
        assert recipe.__doc__
        assert "Not run" in recipe.__doc__ or " s" in recipe.__doc__ or "min" in recipe.__doc__


def test_expected_seconds_are_of_steps_of_the_graph() -> None:
    known = {"join-clips", "join-samples", *steps.STEPS}
    for make in recipes.RECIPES.values():
        assert set(make().expected_s) <= known


def test_every_file_that_a_key_must_count_is_a_field_of_the_config() -> None:
    recipe = recipes.tiny()
    for step in steps.TABLE:
        if step.config:
            assert set(step.files) <= {field.name for field in fields(getattr(recipe, step.config))}
