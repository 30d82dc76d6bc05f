"""What is slow on a machine is told in a line, with what to set; of another one nothing is."""

from pathlib import Path

import pytest

from lmscale.ranks.slow import (
    Seat,
    file_system_of,
    find_slow_build,
    judge_disk,
    judge_precision,
    judge_seats,
)

MOUNTS = r"""overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
server:/a\040b /a\040b nfs rw 0 0
/dev/nvme0n1 /home/local ext4 rw 0 0
"""


def test_bf16_that_is_slower_than_fp32_is_told_with_both_rates():
    (slow,) = judge_precision("bf16", {"fp32": 60.0, "bf16": 1.5})
    assert slow.found == "bf16 does 1.5 GFLOP/s on a core of this CPU, fp32 60.0"
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
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "INFO"}
    assert [slow.advice for slow in find_slow_build(environ)] == ["Unset CUDA_LAUNCH_BLOCKING"]


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
