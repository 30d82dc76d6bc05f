"""A section of several kinds: the YAML names the kind, installed packages add others."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Literal

import pytest

from lmscale.config import RunConfig, dump_config, kinds, parse_config
from lmscale.config.kinds import Ability
from lmscale.config.objective import OBJECTIVES, CausalConfig, ObjectiveConfig
from lmscale.errors import ConfigError


class GuessConfig(ObjectiveConfig):
    """An objective of another package."""

    name: Literal["guess"] = "guess"
    rate: float = 0.15


class NoObjective:
    pass


@pytest.fixture
def installed(monkeypatch):
    """Install entry points of the group of objectives, by name."""

    def install(**values: str) -> None:
        group = EntryPoints(
            EntryPoint(name=name, value=value, group=OBJECTIVES.group)
            for name, value in values.items()
        )
        monkeypatch.setattr(
            kinds, "entry_points", lambda **which: group.select(group=which["group"])
        )

    return install


def parse(objective: str):
    return parse_config(f"run: {{name: a}}\nobjective: {objective}", name="c.yaml")


def problems_of(objective: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(objective)
    return list(caught.value.problems)


def test_a_file_that_names_no_objective_means_the_causal_one():
    assert parse("{z_loss: 0.5}").objective == CausalConfig(z_loss=0.5)
    assert parse_config("run: {name: a}").objective == CausalConfig()


def test_an_installed_package_adds_an_objective_with_keys_of_its_own(installed):
    installed(guess=f"{__name__}:GuessConfig")
    config = parse("{name: guess, rate: 0.3}")
    assert config.objective == GuessConfig(rate=0.3)
    assert parse_config(dump_config(config)) == config


def test_problems_stand_at_their_key_whatever_the_kind(installed):
    installed(guess=f"{__name__}:GuessConfig")
    assert problems_of("{name: guess, z_loss: 1, rate: much}") == [
        "c.yaml: objective.rate: input should be a valid number; found 'much'.",
        "c.yaml: objective.z_loss: unknown key. Known here: name, rate.",
    ]


def test_an_unknown_objective_is_told_the_known_ones(installed):
    installed(guess=f"{__name__}:GuessConfig")
    (problem,) = problems_of("{name: gess}")
    assert problem == ("c.yaml: objective: name = 'gess' is not known. Known: causal, guess.")


def test_an_entry_point_that_cannot_be_used_is_named(installed):
    installed(gone="no_such_package:It", wrong=f"{__name__}:NoObjective")
    (gone,), (wrong,) = problems_of("{name: gone}"), problems_of("{name: wrong}")
    assert "'gone' (no_such_package:It, entry point lmscale.objectives) cannot be imported" in gone
    assert f"'wrong' ({__name__}:NoObjective, entry point lmscale.objectives) is no" in wrong


class ClozeConfig(ObjectiveConfig):
    """An objective that no model of this version can serve."""

    needs = frozenset({Ability.BIDIRECTIONAL})
    name: Literal["cloze"] = "cloze"


def test_what_an_objective_needs_of_the_model_is_asked_of_the_configuration(installed):
    installed(cloze=f"{__name__}:ClozeConfig")
    assert problems_of("{name: cloze}") == [
        "c.yaml: objective.name = 'cloze' needs a model that is bidirectional, which the one of "
        "section model is not."
    ]


def test_the_schema_has_the_keys_of_every_kind(installed):
    installed(guess=f"{__name__}:GuessConfig")
    schema = RunConfig.model_json_schema()
    keys = [set(kind["properties"]) for kind in schema["properties"]["objective"]["anyOf"]]
    assert keys == [{"name", "z_loss", "chunk_tokens"}, {"name", "rate"}]
