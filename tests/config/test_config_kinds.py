"""A section of several kinds: the YAML names the kind, installed packages add others."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Literal

import pytest

from lmscale.config import RunConfig, dump_config, kinds, parse_config
from lmscale.config.kinds import Ability, import_implementation
from lmscale.config.objective import OBJECTIVES, CausalConfig, ObjectiveConfig
from lmscale.errors import ConfigError
from lmscale.objective.objective import Objective, build_preparation


class GuessConfig(ObjectiveConfig):
    """An objective of another package."""

    implementation = "no_such_package:GUESS"
    name: Literal["guess"] = "guess"
    rate: float = 0.15


class NoObjective:
    pass


class UnfinishedConfig(ObjectiveConfig):
    """It names no implementation."""


@pytest.fixture
def installed(monkeypatch):
    """Install entry points of the group of objectives, by name; a name may have several."""

    def install(**values: str | tuple[str, ...]) -> None:
        group = EntryPoints(
            EntryPoint(name=name, value=value, group=OBJECTIVES.group)
            for name, several in values.items()
            for value in ((several,) if isinstance(several, str) else several)
        )
        monkeypatch.setattr(kinds, "_installed", lambda name: group.select(group=name))

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
        "c.yaml:2: objective.rate: input should be a valid number; found 'much'.",
        "c.yaml:2: objective.z_loss: unknown key. Known here: name, rate. It is one of "
        "objective.name: causal, distill, fill_middle, prefix, spans, denoisers, infill, "
        "pairs, completion, dialogue, mixture.",
    ]


def test_an_unknown_objective_is_told_the_known_ones(installed):
    installed(guess=f"{__name__}:GuessConfig")
    (problem,) = problems_of("{name: gess}")
    known = ", ".join([*OBJECTIVES.own, "guess"])
    told = f"'gess' is not known. Did you mean guess? Known: {known}; others are installed "
    told += "with the packages that add them (entry points lmscale.objectives)."
    assert problem == f"c.yaml:2: objective.name: {told}"


def test_an_entry_point_that_cannot_be_used_is_named(installed):
    installed(gone="no_such_package:It", wrong=f"{__name__}:NoObjective")
    (gone,), (wrong,) = problems_of("{name: gone}"), problems_of("{name: wrong}")
    assert "'gone' (no_such_package:It, entry point lmscale.objectives) cannot be imported" in gone
    assert f"'wrong' ({__name__}:NoObjective, entry point lmscale.objectives) is no" in wrong


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("raise RuntimeError('no CUDA here')", "RuntimeError: no CUDA here."),
        ("raise OSError('lib.so')", "OSError: lib.so."),
        ("def", "SyntaxError: invalid syntax (broken_package.py, line 1)."),
    ],
)
def test_a_package_that_cannot_be_imported_is_a_problem_whatever_it_raises(
    installed, tmp_path, monkeypatch, content, error
):
    (tmp_path / "broken_package.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    installed(broken="broken_package:It")
    assert problems_of("{name: broken}") == [
        "c.yaml:2: objective.name: 'broken' (broken_package:It, entry point lmscale.objectives) "
        f"cannot be imported: {error}"
    ]


def test_a_kind_without_an_implementation_is_refused(installed):
    installed(unfinished=f"{__name__}:UnfinishedConfig")
    (problem,) = problems_of("{name: unfinished}")
    assert problem.endswith("lmscale.objectives) has no implementation, module:NAME.")


def test_a_name_that_two_kinds_have_is_refused_with_both(installed):
    installed(guess=("one:It", "other:It"), causal="third:It", cloze=f"{__name__}:ClozeConfig")
    (two,), (own,) = problems_of("{name: guess}"), problems_of("{z_loss: 0.5}")
    assert two == (
        "c.yaml:2: objective.name: 'guess' is the name of several kinds, one:It and other:It "
        "(entry points lmscale.objectives). Uninstall all packages but one that name it."
    )
    assert "'causal' is the name of several kinds, lmscale.config.objective:CausalConfig" in own
    assert OBJECTIVES.section("cloze") is ClozeConfig


def test_a_kind_that_two_folders_of_the_path_name_alike_is_one(installed):
    installed(guess=(f"{__name__}:GuessConfig",) * 2)
    assert parse("{name: guess}").objective == GuessConfig()


def test_an_implementation_that_is_not_there_is_an_error_of_the_configuration(installed):
    installed(guess=f"{__name__}:GuessConfig")
    config = parse("{name: guess}")
    with pytest.raises(ConfigError, match=r"no_such_package:GUESS of .*:GuessConfig cannot be imp"):
        build_preparation(config)
    for place in ("lmscale.objective.causal:GONE", "lmscale.objective.causal:CausalPreparation"):

        class MovedConfig(GuessConfig):
            implementation = place

        with pytest.raises(ConfigError, match=f"The implementation {place} of"):
            import_implementation(MovedConfig(), Objective)


class ClozeConfig(ObjectiveConfig):
    """An objective that no model of this version can serve."""

    needs = frozenset({Ability.BIDIRECTIONAL})
    implementation = "no_such_package:CLOZE"
    name: Literal["cloze"] = "cloze"


def test_what_an_objective_needs_of_the_model_is_asked_of_the_configuration(installed):
    installed(cloze=f"{__name__}:ClozeConfig")
    assert problems_of("{name: cloze}") == [
        "c.yaml: objective.name = 'cloze' needs model.family: encoder; here it is decoder, which "
        "has causal, distill, fill_middle, prefix, completion, dialogue, classes, numbers."
    ]


def objectives_in_schema() -> list[dict]:
    """Each kind's properties; one that a mixture may have, too, is told once, elsewhere."""
    schema = RunConfig.model_json_schema()
    kinds_of = schema["properties"]["objective"]["anyOf"]
    named = (kind.get("$ref", "").rpartition("/")[2] for kind in kinds_of)
    whole = zip(kinds_of, named, strict=True)
    return [(schema["$defs"][name] if name else kind)["properties"] for kind, name in whole]


def test_the_schema_has_the_keys_of_every_kind(installed):
    installed(guess=f"{__name__}:GuessConfig")
    keys = [set(properties) for properties in objectives_in_schema()]
    own = [set(section.model_fields) for section in OBJECTIVES.own.values()]
    assert keys == [*own, {"name", "rate"}]


class OddConfig(ObjectiveConfig):
    """Of a type for which JSON has no schema."""

    implementation = "no_such_package:ODD"
    name: Literal["odd"] = "odd"
    call: Callable[[], None] = print


def test_a_broken_package_leaves_its_kind_out_of_the_schema(installed):
    twice = ("one:It", "other:It")
    odd = f"{__name__}:OddConfig"
    installed(gone="gone:It", guess=f"{__name__}:GuessConfig", causal="x:It", twice=twice, odd=odd)
    names = [properties["name"]["const"] for properties in objectives_in_schema()]
    assert names == [*OBJECTIVES.own, "guess"]
