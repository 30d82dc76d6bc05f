"""Every number of a cluster's profile has bounds: its key is refused, or a job can be rendered."""

from __future__ import annotations

import pytest
import yaml
from numeric_settings import VALUES, check_problems, numeric_settings
from slurm_cases import make_request

from launcher.plan import plan_job
from launcher.render import render
from lmscale.config.cluster import parse_cluster
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ConfigError

CLUSTER = {"time": "24:00:00", "tasks_per_node": 2}
SETTINGS = sorted(set(numeric_settings(ClusterConfig)))
TIMES = [f"{n}-00:00:00" for n in ("1", "9" * 30, "9" * 5000)] + ["9999:00:00", "99999:00:00"]


def test_the_settings_are_found():
    assert {"signal_seconds", "preflight.slow_ratio", "array_limit"} <= {*SETTINGS}
    assert len(SETTINGS) > 12


@pytest.mark.parametrize("path", [*SETTINGS, "memory_per_node"])
def test_a_number_is_refused_by_its_key_or_a_job_can_be_rendered(path):
    head, _, last = path.rpartition(".")
    others = yaml.safe_dump({key: value for key, value in CLUSTER.items() if key != path})
    for value in VALUES:
        check(f"{others}{head}: {{{last}: {value}}}" if head else f"{others}{path}: {value}", path)


@pytest.mark.parametrize("time", TIMES, ids=len)
def test_a_time_of_any_length_is_refused_by_its_key_or_a_job_can_be_rendered(time):
    check(f"time: '{time}'\ntasks_per_node: 2\n", "time")


def check(text: str, key: str) -> None:
    try:
        cluster = parse_cluster(text)
    except ConfigError as error:
        check_problems(error, key)
        return
    assert ClusterConfig.model_validate(cluster.model_dump(mode="json")) == cluster
    assert cluster.memory_kib < 2**63
    try:
        render(plan_job(make_request(cluster), "train"))
    except ConfigError as error:
        assert "cannot be dealt evenly" in str(error)
