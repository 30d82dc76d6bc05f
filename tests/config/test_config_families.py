"""The section model has kinds: a family is chosen by model.family."""

from __future__ import annotations

from typing import Literal

import pytest

from lmscale.config import dump_config, parse_config
from lmscale.config.kinds import Ability
from lmscale.config.model import DecoderConfig, ModelConfig
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError


def test_a_file_without_a_family_describes_a_decoder():
    config = parse_config("run: {name: a}\nmodel: {layers: 3}")
    assert config.model == DecoderConfig(layers=3)
    assert config.model.family == "decoder"
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{famliy: decoder}", "c.yaml:2: model.famliy: unknown key. Did you mean family?"),
        (
            "{family: decodr}",
            "c.yaml:2: model.family: 'decodr' is not known. Did you mean decoder?",
        ),
        ("{rope_scaling: {kind: yarn, factor: 4}}", "kind = yarn needs original_positions"),
        (
            "{rope_theta: 1, rope_scaling: {kind: yarn, factor: 4, original_positions: 9}}",
            "rope_theta = 1 gives all pairs one frequency",
        ),
        ("{rope_scaling: {low_turns: 4}}", "low_turns = 4 must be less than high_turns = 4"),
        ("{rope_scaling: {factor: 8}}", "factor = 8 needs a kind: linear, ntk, yarn or llama3"),
        ("{layers: 2, sliding_windows: [4, 0, 0]}", "has 3 numbers for layers = 2"),
        ("{family: encoder, layers: 1, sliding_windows: [4, 0]}", "has 2 numbers for layers = 1"),
        ("{positions: learned, rope_scaling: {kind: ntk}}", "ntk needs positions: rope"),
        ("{family: recurrent, norm: rms}", "c.yaml:2: model.norm: unknown key. Known here: "),
        ("{family: decoder, head: 4}", "c.yaml:2: model.head: unknown key. Did you mean heads?"),
    ],
)
def test_an_unknown_family_or_key_is_told_with_those_that_are_known(model, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(f"run: {{name: a}}\nmodel: {model}", name="c.yaml")
    assert words in str(caught.value)


class OutsideConfig(ModelConfig):
    """Of another package, with names of its own that a decoder has as well."""

    offers = frozenset({Ability.CAUSAL, Ability.PREFIX})
    implementation = "outside:FAMILY"

    family: Literal["outside"] = "outside"
    mup: bool = True
    segments: tuple[str, ...] = ("start", "end")


@pytest.mark.parametrize("objective", ["causal", "prefix"])
def test_a_family_from_outside_gives_the_names_of_its_settings_a_meaning_of_its_own(objective):
    tree = {"run": {"name": "a"}, "objective": {"name": objective}, "model": OutsideConfig()}
    config = RunConfig.model_validate({**tree, "engine": {"optimizer": {"kind": "muon"}}})
    assert config.model == OutsideConfig()
