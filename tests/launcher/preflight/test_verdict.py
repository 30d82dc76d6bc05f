import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.preflight.verdict import BAD_NODES, FIT, NOTHING_WORKS, judge, render_table

LIMITS = {"slow_ratio": 0.8, "max_clock_skew_seconds": 2.0}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "lmscale": "/run/code/lmscale"}
VERSIONS |= {"libc": "glibc 2.36", "gpus": "NVIDIA H100, 550.54.15"}
GOOD_CHECKS = ("run folder", "space in scratch", "shards of web", "cores", "health check")


def speed(factor=1.0, clock=0.0):
    """What one GPU's process reports."""
    return {
        "part": "done",
        "matmul_tflops": 700.0 * factor,
        "all_reduce_gbs": 180.0,
        "met_at": 1_000_000.0 + clock,
    }


def report(*, versions=None, failed=None, factor=1.0, clock=0.0, tasks=2, uses_gpus=True):
    checks = [{"check": name, "ok": True, "found": "as it should be"} for name in GOOD_CHECKS]
    checks += [{"check": name, "ok": False, "found": text} for name, text in (failed or {}).items()]
    return {
        "uses_gpus": uses_gpus,
        "checks": checks,
        "versions": VERSIONS | (versions or {}),
        "free_gb": {"run folder": 900.0, "scratch": 1400.0},
        "speeds": [speed(factor, clock) for _ in range(tasks)],
    }


def unmeasured(part, error, **changes):
    """A node whose first process failed in ``part``."""
    bad = report(**changes)
    bad["speeds"][0] = {"part": part, "error": error}
    return bad


def name_nodes(reports):
    return {f"n{number}": value for number, value in enumerate(reports, start=1)}


# Ways in which one node of several is bad.
FAULTS = {
    "silent": lambda: None,
    "failed check": lambda: report(failed={"space in scratch": "0 GB are free"}),
    "unhealthy": lambda: report(failed={"health check": "nhc: ended with code 1"}),
    "other driver": lambda: report(versions={"gpus": "NVIDIA H100, 535.104.05"}),
    "no torch": lambda: report(versions={"torch": None}),
    "late clock": lambda: report(clock=-7.5),
    "early clock": lambda: report(clock=3600.0),
    "slow": lambda: report(factor=0.5),
    "no product": lambda: unmeasured("matrix product", "torch sees no GPU"),
    "lost": lambda: unmeasured("reaching the first node", "no answer from n1:10000"),
}


@given(
    jitter=st.lists(st.floats(0.93, 1.07), min_size=1, max_size=20),
    clock=st.floats(-0.9, 0.9),
)
@settings(max_examples=50, deadline=None)
def test_nodes_that_are_alike_are_fit_however_many_there_are(jitter, clock):
    reports = [report(factor=factor) for factor in jitter]
    reports[0] = report(factor=jitter[0], clock=clock)
    verdict = judge(name_nodes(reports), **LIMITS)
    assert (verdict.code, verdict.bad) == (FIT, {})
    assert "fit" in verdict.message


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_fewer_than_half_bad_nodes_are_named_exactly_in_any_order(data):
    kinds = data.draw(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6))
    num_good = data.draw(st.integers(len(kinds) + 1, len(kinds) + 8))
    # The first node keeps the list of those who meet; what follows from its failure is below.
    rest = data.draw(st.permutations([*kinds, *["good"] * (num_good - 1)]))
    reports = name_nodes(
        [report() if kind == "good" else FAULTS[kind]() for kind in ["good", *rest]]
    )
    verdict = judge(reports, **LIMITS)
    expected = {f"n{n}" for n, kind in enumerate(rest, start=2) if kind != "good"}
    assert verdict.code == BAD_NODES
    assert set(verdict.bad) == expected
    assert all(
        reason and "\n" not in reason and "\t" not in reason for reason in verdict.bad.values()
    )


# What is wrong with a node whatever the others are like.
ABSOLUTE = ("silent", "failed check", "no product")


@given(
    kinds=st.lists(st.sampled_from(ABSOLUTE), min_size=2, max_size=8), num_good=st.integers(0, 8)
)
@settings(max_examples=100, deadline=None)
def test_half_of_three_or_more_nodes_are_never_excluded(kinds, num_good):
    num_good = max(min(num_good, len(kinds)), 3 - len(kinds))
    reports = [FAULTS[kind]() for kind in kinds] + [report() for _ in range(num_good)]
    verdict = judge(name_nodes(reports), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})


@given(st.lists(st.sampled_from([*sorted(FAULTS), "good"]), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_every_mixture_of_reports_has_a_verdict_and_a_line_each(kinds):
    reports = name_nodes([report() if kind == "good" else FAULTS[kind]() for kind in kinds])
    before = copy.deepcopy(reports)
    verdict = judge(reports, **LIMITS)
    assert verdict.code in (FIT, BAD_NODES, NOTHING_WORKS)
    assert bool(verdict.bad) == (verdict.code == BAD_NODES)
    assert (verdict.code == FIT) == (not verdict.problems)
    assert 2 * len(verdict.bad) < len(reports) or len(reports) <= 2 or "unhealthy" in kinds
    assert len(verdict.bad) < len(reports) or len(reports) == 1
    lines = render_table(reports, verdict).splitlines()
    assert len(lines) == len(reports) + 1
    assert len({line.index(word) for line, word in zip(lines[1:], reports, strict=True)}) == 1
    assert reports == before


def test_what_every_node_fails_is_the_jobs_mistake_and_told_once():
    failed = {"shards of web": "/data/web/manifest.json: there is no such file"}
    verdict = judge(name_nodes([report(failed=failed) for _ in range(4)]), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})
    assert verdict.message.splitlines() == [
        "4 of 4 nodes are not fit. That is no bad node, but something in this job or this cluster, "
        "so none is excluded:",
        "  every node: shards of web: /data/web/manifest.json: there is no such file",
    ]


DEAD = {
    "GPUs alive": "nvidia-smi ended with code 15: Unable to determine the device handle for GPU: "
    "GPU is lost. Reboot the system to recover this GPU",
    "health check": "dcgmi diag -r 1: ended with code 226 | GPU Memory: Fail",
}


@pytest.mark.parametrize("check", sorted(DEAD))
@pytest.mark.parametrize(("num_bad", "num_good"), [(1, 0), (2, 2), (3, 2), (1, 2)])
def test_dead_gpus_are_the_nodes_own_though_half_of_the_nodes_have_them(check, num_bad, num_good):
    bad = [report(failed={check: DEAD[check]}) for _ in range(num_bad)]
    bad[0] = unmeasured("matrix product", "torch sees no GPU", failed={check: DEAD[check]})
    verdict = judge(name_nodes([*bad, *[report() for _ in range(num_good)]]), **LIMITS)
    assert verdict.code == BAD_NODES
    assert list(verdict.bad) == [f"n{number}" for number in range(1, num_bad + 1)]
    assert DEAD[check] in verdict.bad["n1"]


@pytest.mark.parametrize("number", [2, 4])
def test_fewer_gpus_on_every_one_of_several_nodes_are_the_profiles_mistake(number):
    failed = {"GPUs alive": "4 GPUs (NVIDIA H100), the profile says 8"}
    verdict = judge(name_nodes([report(failed=failed) for _ in range(number)]), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})


@pytest.mark.parametrize("number", [1, 4])
def test_no_driver_program_at_all_is_the_images_or_the_profiles_mistake(number):
    failed = {"nvidia-smi": "nvidia-smi is not installed or not on PATH"}
    verdict = judge(name_nodes([report(failed=failed) for _ in range(number)]), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})


def test_half_of_the_nodes_are_the_clusters_mistake():
    failed = {"run folder": "the token is not to be seen from here"}
    reports = [report(), report(failed=failed), report(), report(failed=failed)]
    verdict = judge(name_nodes(reports), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})
    assert "  n2, n4: run folder: the token is not to be seen from here" in verdict.message


@pytest.mark.parametrize("kind", ["silent", "failed check", "unhealthy", "no product"])
def test_of_two_nodes_one_may_be_bad(kind):
    verdict = judge(name_nodes([report(), FAULTS[kind]()]), **LIMITS)
    assert (verdict.code, list(verdict.bad)) == (BAD_NODES, ["n2"])


@pytest.mark.parametrize("kind", ["other driver", "late clock"])
def test_two_nodes_that_differ_cannot_be_told_apart(kind):
    verdict = judge(name_nodes([report(), FAULTS[kind]()]), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})
    assert "n1" in verdict.message and "n2" in verdict.message


def test_the_only_node_is_bad_when_its_health_check_says_so():
    verdict = judge({"n1": FAULTS["unhealthy"]()}, **LIMITS)
    assert verdict.code == BAD_NODES
    assert verdict.bad == {"n1": "health check: nhc: ended with code 1"}


def test_a_health_check_that_cannot_run_is_not_held_against_the_only_node():
    verdict = judge({"n1": report(failed={"preflight.command": "nhc: code 127"})}, **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})


@pytest.mark.parametrize("kind", ["silent", "failed check", "no product"])
def test_the_only_node_is_not_blamed_for_what_may_be_the_jobs_mistake(kind):
    assert judge({"n1": FAULTS[kind]()}, **LIMITS).code == NOTHING_WORKS


def test_all_that_is_wrong_with_a_node_is_in_its_reason():
    bad = report(failed={"shards of web": "cut short"}, factor=0.4, clock=9.0)
    verdict = judge(name_nodes([report(), report(), bad]), **LIMITS)
    assert verdict.bad == {
        "n3": "shards of web: cut short; clock: +9.0 s from the median node's; "
        "matrix product: GPU 0: 280 TFLOP/s, 40% of the median node's 700"
    }


def test_a_node_is_as_slow_as_its_slowest_gpu():
    slow = report(tasks=8)
    slow["speeds"][5]["matmul_tflops"] = 430.0
    verdict = judge(name_nodes([report(tasks=8), slow, report(tasks=8)]), **LIMITS)
    assert verdict.bad == {"n2": "matrix product: GPU 5: 430 TFLOP/s, 61% of the median node's 700"}


def test_a_gpu_that_gave_no_result_is_named():
    bad = report(tasks=8)
    bad["speeds"][7] = None
    verdict = judge(name_nodes([report(tasks=8), bad, report(tasks=8)]), **LIMITS)
    assert verdict.bad == {"n2": "report: GPU 7: measuring was never finished"}


def test_the_all_reduce_is_shown_and_not_judged():
    """In it every node is as slow as the slowest."""
    reports = [report(uses_gpus=False, tasks=1) for _ in range(3)]
    reports[1]["speeds"][0]["all_reduce_gbs"] = 1.0
    verdict = judge(name_nodes(reports), **LIMITS)
    assert verdict.code == FIT
    assert "1 " in render_table(name_nodes(reports), verdict).splitlines()[2]
    reports[1]["speeds"][0]["matmul_tflops"] = 1.0
    assert list(judge(name_nodes(reports), **LIMITS).bad) == ["n2"]


def test_nobody_is_blamed_for_not_reaching_a_first_node_that_did_not_start():
    lost = unmeasured("reaching the first node", "no answer from n1:10000")
    verdict = judge(name_nodes([None, lost, copy.deepcopy(lost), copy.deepcopy(lost)]), **LIMITS)
    assert (verdict.code, list(verdict.bad)) == (BAD_NODES, ["n1"])


@pytest.mark.parametrize("kind", ["silent", "no product", "lost"])
def test_nobody_is_blamed_for_waiting_at_the_meeting_for_a_node_that_did_not_come(kind):
    waited = unmeasured("meeting", "timed out")
    reports = name_nodes([copy.deepcopy(waited), FAULTS[kind](), copy.deepcopy(waited)])
    verdict = judge(reports, **LIMITS)
    assert (verdict.code, list(verdict.bad)) == (BAD_NODES, ["n2"])


def test_nobody_is_blamed_for_waiting_for_a_node_that_died_in_the_all_reduce():
    died = report()
    died["speeds"][0] = None
    waited = unmeasured("all-reduce", "Connection closed by peer")
    reports = name_nodes([waited, copy.deepcopy(waited), died, copy.deepcopy(waited)])
    verdict = judge(reports, **LIMITS)
    assert (verdict.code, list(verdict.bad)) == (BAD_NODES, ["n3"])


def test_a_network_that_works_for_nobody_is_the_clusters_mistake():
    lost = unmeasured("all-reduce", "NCCL error: unhandled system error")
    verdict = judge(name_nodes([copy.deepcopy(lost) for _ in range(4)]), **LIMITS)
    assert (verdict.code, verdict.bad) == (NOTHING_WORKS, {})
    assert "every node: all-reduce: GPU 0: NCCL error" in verdict.message


def test_the_table_shows_what_people_look_at():
    reports = name_nodes([report(), report(factor=0.5), report(clock=0.25), None])
    table = render_table(reports, judge(reports, **LIMITS))
    assert table == "\n".join(
        [
            "node  GPUs  TFLOP/s  all-reduce GB/s  clock s  free GB",
            "n1    2     700      180              +0.000   900, 1400  fit",
            "n2    2     350      180              +0.000   900, 1400  matrix product",
            "n3    2     700      180              +0.250   900, 1400  fit",
            "n4    -     -        -                -        -          report",
        ]
    )
