"""A container's CPU quota, as both versions of control groups say it."""

from __future__ import annotations

import math

import pytest

from lmscale.ranks import device
from lmscale.ranks.quota import read_quota


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),  # of the machine's own root
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/a\n", {"b/cpu.max": "50000 100000"}, math.inf),  # another's
        ("0::/a\n", {"a/cpu.max": "what"}, math.inf),
        ("0::/a\n", {"a/cpu.max": "1 0"}, math.inf),
        (
            "2:cpu,cpuacct:/docker/x\n1:cpuset:/\n",  # whose tree the container sees from there on
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        (
            "1:cpu:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        ("", {"cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_the_tightest_quota_around_a_process_counts(tmp_path, groups, files, cores):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert read_quota(tmp_path / "cgroup", tmp_path / "fs") == cores


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, 8), (3.0, 3), (1.5, 2), (0.2, 1), (64, 8)])
def test_cores_are_those_of_the_affinity_and_no_more_than_the_quota_allows(
    monkeypatch, quota, cores
):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: {*range(8)})
    monkeypatch.setattr(device, "read_quota", lambda: quota)
    assert device.num_cores() == cores
