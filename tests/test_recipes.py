from dataclasses import fields

import pytest
import torch

from relic import recipes, steps
from relic.mistakes import UserError
from relic.model.codec import Codec
from relic.model.pose_net import PoseNet
from relic.model.transformer import Transformer


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


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_networks_of_a_recipe_are_built_on_the_meta_device(name: str) -> None:
    recipe = recipes.named(name)
    with torch.device("meta"):
        built = [Transformer(recipe.teacher.model), Codec(recipe.codec.model), PoseNet(recipe.pose_net.model)]
    assert all(parameter.is_meta for module in built for parameter in module.parameters())


@pytest.mark.parametrize("name", ["wan_1b", "relic_14b"])
def test_the_large_recipes_have_the_papers_dials(name: str) -> None:
    recipe = recipes.named(name)
    curate, rollout, distill = recipe.curate, recipe.distill.rollout, recipe.distill
    assert (curate.height, curate.width, curate.fps, curate.num_frames) == (480, 832, 16, 317)
    assert [(s.latents, s.steps) for s in recipe.teacher.stages] == [(21, 5000), (40, 1000), (80, 4000)]
    assert [(s.latents, s.steps) for s in distill.stages] == [(20, 250), (40, 150), (80, 150)]
    assert (rollout.chunk, rollout.memory.window, rollout.memory.capacity) == (4, 8, 80)
    assert recipe.student_init.rollout == recipe.evaluate.rollout == rollout
    assert (distill.optimizer.learning_rate, distill.critic_optimizer.learning_rate) == (2e-6, 4e-7)
    assert (distill.critic_steps, distill.guidance, distill.ema, distill.stages[0].batch) == (5, 3.0, 0.99, 64)


def test_the_trajectories_suit_the_student() -> None:
    for make in recipes.RECIPES.values():
        solved, student = make().trajectories, make().student_init
        assert solved.timesteps == student.rollout.timesteps
        assert solved.latents >= student.latents


def test_every_length_of_distillation_has_a_teacher() -> None:
    for make in recipes.RECIPES.values():
        recipe = make()
        longest = max(stage.latents for stage in recipe.teacher.stages)
        assert all(stage.latents <= longest for stage in recipe.distill.stages)
