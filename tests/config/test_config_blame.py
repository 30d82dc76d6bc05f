"""A problem begins with who gave the value: a line of the file, or an override."""

import pytest

from lmscale.config import parse_config
from lmscale.config.load import blaming
from lmscale.config.model import FAMILIES
from lmscale.errors import ConfigError

MINIMAL = "run: {name: a}\n"


def problems_of(text, overrides=()):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, name="c.yaml")
    return list(caught.value.problems)


KINDS = "input should be 'adamw', 'adafactor', 'adam', 'lion', 'muon', 'schedule_free' or 'sgd'"


def test_a_wrong_value_is_told_with_who_gave_it():
    text = MINIMAL + "train: {steps: many, log_every_steps: 0}\n"
    known = (
        f"Known: {', '.join(FAMILIES.names())}; others are installed with the packages that add "
    )
    known += "them (entry points lmscale.families)."
    given = [
        "model.family=encodr",
        "train.steps=more",
        "modle.width=4",
        "engine.optimizer.kind=best",
    ]
    assert sorted(problem.partition(": ")[::2] for problem in problems_of(text, given)) == [
        ("--set engine.optimizer.kind=best", f"engine.optimizer.kind: {KINDS}; found 'best'."),
        (
            "--set model.family=encodr",
            f"model.family: 'encodr' is not known. Did you mean encoder? {known}",
        ),
        ("--set modle.width=4", "modle: unknown key. Did you mean model?"),
        (
            "--set train.steps=more",
            "train.steps: input should be a valid integer; found 'more'.",
        ),
        ("c.yaml:2", "train.log_every_steps: input should be greater than 0; found 0."),
    ]


@pytest.mark.parametrize(
    ("overrides", "owner"),
    [
        ([], "c.yaml: "),
        (["train.steps=5"], "c.yaml with --set train.steps=5: "),
        (["engine.schedule={warmup_steps: 9}"], "c.yaml with --set engine.schedule={warmup_"),
        (["engine.schedule.warmup_steps=9"], "c.yaml with --set engine.schedule.warmup_steps=9: "),
        (["run.seed=5", "train.log_every_steps=3"], "c.yaml: "),
    ],
)
def test_values_that_fail_together_are_told_with_the_overrides_among_them(overrides, owner):
    text = MINIMAL + "train: {steps: 6}\nengine: {schedule: {warmup_steps: 8}}\n"
    (said,) = problems_of(text, overrides)
    assert said.startswith(owner) and "is more than train.steps" in said


def test_a_section_whose_own_values_fail_together_is_told_with_its_line():
    text = MINIMAL + "engine:\n  zero_stage: 0\n  offload_optimizer: true\n"
    (said,) = problems_of(text)
    assert said == "c.yaml:2: engine: offload_optimizer needs zero_stage 1, 2 or 3."
    (said,) = problems_of(MINIMAL + "engine: {zero_stage: 0}", ["engine.offload_optimizer=true"])
    assert said.startswith("c.yaml:2 with --set engine.offload_optimizer=true: engine: ")


def test_what_a_number_of_ranks_makes_wrong_is_blamed_on_the_override_that_gave_it():
    config = parse_config(MINIMAL, ["batch.global_windows=7", "run.seed=2"])
    with pytest.raises(ConfigError) as caught, blaming(["batch.global_windows=7", "run.seed=2"]):
        config.batch.plan(2)
    (said,) = caught.value.problems
    assert said.startswith("--set batch.global_windows=7: batch.global_windows = 7 cannot be dealt")


def test_a_key_that_was_merged_is_told_with_the_line_of_its_section():
    text = MINIMAL + "stream:\n  sources:\n    a: &a {shards: x, wieght: 1}\n    b: {<<: *a}\n"
    assert [problem.partition(": ")[0] for problem in problems_of(text)] == ["c.yaml:4", "c.yaml:5"]


def test_a_password_in_an_override_is_not_shown_though_the_override_is_cut():
    given = f"stream.sources.a.shards=s3://someone:{'secret' * 20}@host/x"
    (said,) = problems_of(MINIMAL, [given])
    assert "the URL holds credentials" in said and "secret" not in said
