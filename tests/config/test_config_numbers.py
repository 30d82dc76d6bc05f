"""Every numeric setting of a run has bounds: a value is refused by its key, or works as far as all
that is planned of a run before it starts.
"""

from __future__ import annotations

import copy
import json
from itertools import product
from typing import Any

import pytest
from numeric_settings import VALUES, check_problems, numeric_settings
from pydantic import Field

from lmscale.cli.config import _derive
from lmscale.config import RunConfig
from lmscale.config.base import MAX_NUMBER, Section, show
from lmscale.config.kinds import Ability
from lmscale.config.load import parse_yaml, validate_tree
from lmscale.config.model import FAMILIES
from lmscale.config.objective import OBJECTIVES
from lmscale.engine.schedule import learning_rate
from lmscale.errors import ConfigError
from lmscale.stream.mixture import plan_quotas
from lmscale.watch.heartbeat import beat_seconds
from lmscale.watch.watchdog import group_timeout

RUN = {
    "run": {"name": "a"},
    "corpus": {"sources": {"NAME": {"inputs": ["x"]}}},
    "stream": {"sources": {"NAME": {"shards": "x"}}},
}
NUMBERS = [parse_yaml(f"number: {value}", "a")["number"] for value in VALUES]
RANKS = (1, 12)
# A part of a mixture has the keys that an objective has by itself, read by the same declarations.
PART = "objective.parts.NAME.objective."
SETTINGS = sorted({path for path in numeric_settings(RunConfig) if not path.startswith(PART)})
# Numbers that are handed on to DeepSpeed.
HANDED_ON = ["engine.deepspeed.zero_optimization.sub_group_size"]


def test_the_settings_are_found():
    assert {"train.steps", "engine.optimizer.betas", "stream.sources.NAME.weight"} <= {*SETTINGS}
    assert {"model.kv_heads", "objective.z_loss", "engine.zero_stage"} <= {*SETTINGS}
    assert len(SETTINGS) > 75


def plan_start(config: RunConfig) -> None:
    """What is computed of a configuration before anything of a run exists."""
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config
    for num_ranks in RANKS:
        try:
            json.dumps(_derive(config, num_ranks), allow_nan=False)
        except ConfigError as error:
            assert "cannot be dealt evenly" in str(error)
        beat_seconds(config.watch.heartbeat_seconds, num_ranks)
    total, schedule = config.train.steps, config.engine.schedule
    for step in {1, 2, max(1, schedule.warmup_steps), max(1, total // 2), total}:
        rate = learning_rate(
            schedule, peak=config.engine.optimizer.lr, step=step, total_steps=total
        )
        assert 0 <= rate <= config.engine.optimizer.lr
    assert group_timeout(config.watch).total_seconds() > 0
    weights = {name: source.weight for name, source in config.stream.sources.items()}
    assert sum(plan_quotas(weights, config.stream.mixture_block).values()) > 0


def feed(path: str, number: Any) -> dict[str, Any]:
    """The run's YAML with this number there, of the first kinds of objective and model that have
    the key and go together; betas get it in each place.
    """
    tree = copy.deepcopy(RUN)
    *sections, key = path.split(".")
    if sections[0] in ("objective", "model"):
        name, field = path.split(".")[:2]
        for objective, family in product(OBJECTIVES.own.items(), FAMILIES.own.items()):
            owner = {"objective": objective, "model": family}[name][1]
            if field in owner.model_fields and objective[1].needs <= family[1].offers:
                break
        needed: dict[str, Any] = {"distill": {"teacher": "x"}, "classes": {"names": ["a", "b"]}}
        own = {"classes": {"text_classes": 2}, "answers": {"token_classes": 2}}
        tree |= {
            "objective": {"name": objective[0]} | needed.get(objective[0], {}),
            "model": {"family": family[0]} | own.get(objective[0], {}),
        }
        is_whole = objective[0] in own
        tree["stream"]["mask_documents"] = is_whole or Ability.CROSS not in objective[1].needs
        tree["stream"]["packing"] = "best_fit" if is_whole else "concat"
    section: Any = tree
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = [number, number] if key == "betas" else number
    return tree


@pytest.mark.parametrize("path", [*SETTINGS, *HANDED_ON])
def test_a_setting_of_a_run_is_refused_by_its_key_or_can_be_planned(path):
    for number in NUMBERS:
        try:
            config = validate_tree(RunConfig, feed(path, number), name="a")
        except ConfigError as error:
            check_problems(error, path)
        else:
            plan_start(config)


def test_a_number_whose_field_states_no_bound_has_one_as_well():
    class Plain(Section):
        count: int = 0
        ratios: tuple[float, ...] = Field(default=(), strict=False)
        mapping: dict[str, Any] = Field(default_factory=dict)
        bounded: int = Field(default=0, le=2**40)

    for values in ({"count": MAX_NUMBER}, {"bounded": 2**40}, {"mapping": {"a": [2**63 - 1]}}):
        Plain.model_validate(values)
    for values in (
        {"count": MAX_NUMBER + 1},
        {"count": -MAX_NUMBER - 1},
        {"ratios": [0.5, 1e10]},
        {"mapping": {"a": {"b": [2**63]}}},
        {"mapping": {"a": float("nan")}},
    ):
        with pytest.raises(ValueError, match=r"give a number of at most [\d,]+; found"):
            Plain.model_validate(values)


@pytest.mark.parametrize("number", [2**64, -(2**20_000)], ids=["long", "longer"])
def test_a_number_too_long_to_print_is_shown_by_its_length(number):
    assert show(number).endswith("digits") and len(show(number)) < 40
