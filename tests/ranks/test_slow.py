"""What is slow on a machine is told in a line, with what to set; of another one nothing is."""

from pathlib import Path

import pytest
from tiny_run import tiny_config

from lmscale.ranks import slow as slow_module
from lmscale.ranks.ranks import Ranks
from lmscale.ranks.slow import (
    Seat,
    Slowness,
    file_system_of,
    find_slow,
    find_slow_build,
    judge_disk,
    judge_precision,
    judge_seats,
)
from lmscale.train import session

MOUNTS = r"""overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
server:/a\040b /a\040b nfs rw 0 0
/dev/nvme0n1 /home/local ext4 rw 0 0
"""


def test_bf16_that_is_slower_than_fp32_is_told_with_both_rates():
    (slow,) = judge_precision("bf16", {"fp32": 60.0, "bf16": 1.5})
    assert slow.found == (
        "bf16 does 1.5 GFLOP/s on a core of this CPU, fp32 60.0: it is 40 × as slow"
    )
    assert "engine.precision=fp32" in slow.advice
    assert not [*judge_precision("bf16", {"fp32": 60.0, "bf16": 90.0})]


@pytest.mark.parametrize(
    ("seats", "advice"),
    [
        ([Seat("a", [0, 1], 1)] * 2, []),
        ([Seat("a", [0], 1), Seat("a", [1], 1), Seat("b", [0], 1)], []),  # bound one by one
        ([Seat("a", [*range(8)], 8)], []),
        ([Seat("a", [*range(8)], 8)] * 2, ["Set OMP_NUM_THREADS=4"]),
        ([Seat("a", [0, 1], 1)] * 4, ["Start 2 ranks there"]),
        ([Seat("a", [0], 1), Seat("b", [0], 1), Seat("b", [0], 1)], ["Start 1 rank there"]),
    ],
)
def test_ranks_that_share_a_core_are_told_what_fits(seats, advice):
    assert [slow.advice for slow in judge_seats(seats)] == advice


def test_what_is_set_to_find_faults_is_named():
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "INFO", "PYTHONDEVMODE": "0"}
    assert [slow.advice for slow in find_slow_build(environ)] == ["Unset CUDA_LAUNCH_BLOCKING"]
    detail = {"TORCH_DISTRIBUTED_DEBUG": "detail", "PYTHONDEVMODE": ""}
    assert [slow.advice for slow in find_slow_build(detail)] == ["Unset TORCH_DISTRIBUTED_DEBUG"]


@pytest.mark.parametrize(("on_cpu", "told"), [(True, [1]), (False, [0])])
def test_a_start_says_it_and_asks_for_the_cores_of_ranks_on_cpus_alone(
    tmp_path, monkeypatch, caplog, on_cpu, told
):
    def find(precision, *, on_cpu, seats):
        assert precision == "fp32"
        return [Slowness(f"{len(seats)} seats", "Set it")]

    monkeypatch.setattr(session, "find_slow", find)
    config = tiny_config(tmp_path, tmp_path / "run", {})
    session.warn_of_slow(config, Ranks(), on_cpu=on_cpu)
    assert caplog.messages == [f"slow: {seats} seats. Set it." for seats in told]
    session.warn_of_slow(config, Ranks(rank=1, world_size=2), on_cpu=False)
    assert len(caplog.messages) == 1  # rank 0 speaks for all


def test_only_a_cpu_is_measured(monkeypatch):
    rates = {"fp32": 60.0, "bf16": 1.5}
    monkeypatch.setattr(slow_module, "product_rates", lambda: rates)
    monkeypatch.setattr(slow_module, "read_mounts", lambda: "")
    found = [[*find_slow("bf16", on_cpu=on_cpu, seats=())] for on_cpu in (True, False)]
    assert [len(each) for each in found] == [1, 0]
    assert not [*find_slow("fp32", on_cpu=True, seats=())]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/tmp", "overlay"),
        ("/home/me/tmp", "nfs4"),
        ("/home/local/tmp", "ext4"),
        ("/homes", "overlay"),
        ("/a b/c", "nfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_deepest_mount(folder, kind):
    assert file_system_of(Path(folder), MOUNTS) == kind
    is_slow = any(judge_disk("TMPDIR", Path(folder), MOUNTS))
    assert is_slow == kind.startswith("nfs")
