"""What tests draw from has every family and every kind of objective, whatever the seed."""

from __future__ import annotations

from labelled_data import LABELLED
from recipes import RECIPES, draw_recipes, family_of
from tiny_run import tiny_config

from lmscale.config.kinds import Ability
from lmscale.config.model import FAMILIES


def test_there_is_a_recipe_of_every_family_and_for_everything_that_one_can_offer(tmp_path):
    configs = [tiny_config(tmp_path, tmp_path, overrides) for overrides in RECIPES.values()]
    assert {config.model.family for config in configs} == set(FAMILIES.own)
    drawn = {need for config in configs for need in config.objective.needs}
    assert drawn == set(Ability) - {Ability.CLASSES}  # of labelled_data.py's recipes
    assert LABELLED["classes"]["objective"]["name"] == "classes"
    assert any(config.objective.more_terms for config in configs)


def test_as_many_draws_as_there_are_families_have_each_once_and_all_recipes_come_in_the_end():
    orders = {tuple(draw_recipes(seed, len(RECIPES))) for seed in range(20)}
    assert len(orders) == 20 and draw_recipes(7, 4) == draw_recipes(7, 4)
    assert set(draw_recipes(1, 40, RECIPES | LABELLED)) == {*RECIPES, *LABELLED}
    for order in orders:
        assert {*map(family_of, order[: len(FAMILIES.own)])} == set(FAMILIES.own)
        assert set(order) == set(RECIPES)
