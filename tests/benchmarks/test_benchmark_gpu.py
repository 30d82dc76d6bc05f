"""The GPU checks run dry on a CPU, and no failure of one check hides another."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from forked_processes import forking
from gpu_checks import Plan, run_all
from gpu_report import Row, append_row, is_good, read_rows, render_markdown

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DRIVER = """
import os, sys, threading, types
sys.path.insert(0, {benchmarks!r})
import gpu_checks
from gpu_check import Check, NotRun, expect

def skip(bench): raise NotRun("no GPU")
def fail(bench): expect(False, "1 is not 2")
def die(bench): os._exit(3)
def hang(bench): threading.Event().wait()

gpu_checks.PARTS["odd"] = "odd"
sys.modules["odd"] = types.SimpleNamespace(CHECKS=(
    Check(name="skips", run=skip), Check(name="fails", run=fail), Check(name="dies", run=die),
    Check(name="hangs", run=hang, limit_seconds=0.3), Check(name="passes", run=lambda _: "well"),
))
sys.exit(gpu_checks.main())
"""


def test_a_check_that_fails_dies_or_hangs_hides_no_other(tmp_path, capsys, monkeypatch):
    for name, value in forking().items():
        monkeypatch.setenv(name, value)
    driver = tmp_path / "odd_checks.py"
    driver.write_text(textwrap.dedent(DRIVER.format(benchmarks=str(BENCHMARKS))))
    plan = Plan(
        folder=tmp_path / "out",
        parts=("odd",),
        seconds=100,
        is_dry_run=True,
        program=(sys.executable, str(driver)),
    )
    assert run_all(plan) == 1
    results = {row.check: row.status for row in read_rows(plan.folder)}
    assert results == {
        "skips": "not run",
        "fails": "failed",
        "dies": "failed",
        "hangs": "failed",
        "passes": "passed",
    }
    printed = capsys.readouterr().out
    assert "1 is not 2" in printed
    assert "its process ended with 3" in printed
    assert "passed its 0 s" in printed
    page = (plan.folder / "gpu-checks.md").read_text(encoding="utf-8")
    assert "1 passed, 3 failed, 1 not run." in page


def test_when_the_time_is_over_what_is_left_has_failed(tmp_path, capsys):
    plan = Plan(folder=tmp_path, parts=("machine", "kernels"), seconds=0, is_dry_run=True)
    assert run_all(plan) == 1
    assert capsys.readouterr().out.count("the run's 0 s are over") == 2


@pytest.mark.slow
def test_the_dry_run_checks_what_a_cpu_can_and_says_what_it_cannot(tmp_path, run_script):
    folder = tmp_path / "out"
    parts = ("--parts", "machine", "kernels")
    printed = run_script("benchmarks/gpu.sh", "--dry-run", "--out", str(folder), *parts)
    rows = read_rows(folder)
    assert {row.status for row in rows} == {"passed", "not run"}
    assert all(row.detail.startswith("no GPU") for row in rows if row.status == "not run")
    assert "All that was run passed" in printed
    page = (folder / "gpu-checks.md").read_text(encoding="utf-8")
    assert page.startswith("## GPU checks: dry run\n")
    assert "A dry run on a CPU at tiny shapes" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_run_dry(run_script):
    assert "--dry-run" in run_script("benchmarks/gpu.sh", expected=2)


def test_the_newest_row_of_a_check_counts_and_running_is_not_good(tmp_path):
    begun = Row(part="a", check="b", status="running", seconds=60)
    append_row(tmp_path, begun)
    assert read_rows(tmp_path) == [begun]
    assert not is_good(read_rows(tmp_path))
    done = Row(part="a", check="b", status="passed", seconds=1.25, detail="x | y\nz")
    append_row(tmp_path, done)
    assert read_rows(tmp_path) == [done]
    page = render_markdown([done], title="T", facts=["F"])
    assert page == (
        "## T\n\nF  \n1 passed, 0 failed, 0 not run.\n\n"
        "| part | check | result | s | what was seen |\n|---|---|---|---:|---|\n"
        "| a | b | passed | 1.2 | x \\| y<br>z |\n"
    )
