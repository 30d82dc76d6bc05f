"""Check on one GPU what tests on a CPU cannot reach, and print its speed beside a bare torch loop.

    benchmarks/gpu.sh                    # about eight minutes; exit code 1 if a check failed
    benchmarks/gpu.sh --dry-run          # on the CPU at tiny shapes; what needs a GPU is not run
    benchmarks/gpu.sh --parts kernels engine

Every part runs in a process of its own. A check that ends its process or passes its time is
recorded as failed, and a new process goes on with the rest, so one failure hides no other. Nothing
is read from a network.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_report import (
    TABLE,
    Row,
    append_row,
    is_good,
    read_rows,
    render_markdown,
    render_text,
)

if TYPE_CHECKING:
    from gpu_check import Bench, Check

START_SECONDS = 90.0  # a process imports torch and DeepSpeed from a cold disk
POLL_SECONDS = 0.2
# Part → module with CHECKS, in the order of what matters most.
PARTS = {
    "machine": "gpu_machine",
    "kernels": "gpu_kernels",
    "engine": "gpu_engine",
    "speed": "gpu_speed",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run of the checks."""

    folder: Path
    parts: tuple[str, ...]
    seconds: float
    is_dry_run: bool
    program: tuple[str, ...] = (sys.executable, __file__)  # what a part's process runs


def run_all(plan: Plan) -> int:
    """Run the parts one after another and render the table; the exit code."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    for stale in ("checks.jsonl", TABLE):
        (plan.folder / stale).unlink(missing_ok=True)
    started = time.monotonic()
    deadline = started + plan.seconds
    for part in plan.parts:
        run_part(part, plan, deadline)
    rows = read_rows(plan.folder)
    page = render_markdown(rows, title=_title(plan), facts=_facts(plan, time.monotonic() - started))
    (plan.folder / TABLE).write_text(page, encoding="utf-8")
    print(render_text(rows))
    good = is_good(rows) and bool(rows)
    print(f"{'All that was run passed' if good else 'NOT all passed'}; {plan.folder / TABLE}")
    return 0 if good else 1


def run_part(part: str, plan: Plan, deadline: float) -> None:
    """Run one part, in a new process after each check that took its process down."""
    while True:
        before = len(read_rows(plan.folder))
        if time.monotonic() >= deadline:
            _fail(plan, part, "all that is left", f"the run's {plan.seconds:.0f} s are over")
            return
        problem = _run_process(part, plan, deadline)
        if problem is None:
            return
        rows = read_rows(plan.folder)
        running = [row for row in rows if row.status == "running"]
        for row in running:
            append_row(plan.folder, replace(row, status="failed", detail=problem))
        if not running and len(rows) == before:  # it did not even begin
            _fail(plan, part, "start", problem)
            return


def _run_process(part: str, plan: Plan, deadline: float) -> str | None:
    """None when the part came to its end; otherwise why it did not."""
    log = plan.folder / f"{part}.log"
    done = [row.check for row in read_rows(plan.folder) if row.part == part]
    command = [*plan.program, "--out", str(plan.folder), "--part", part]
    command += ["--dry-run"] if plan.is_dry_run else []
    command += ["--skip", *done] if done else []
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            problem = _watch(process, part, plan.folder, deadline)
        finally:
            if process.poll() is None:  # with its own children: compilers, loader workers
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"{problem}; {_tail(log)}" if problem else None


def _watch(process: subprocess.Popen, part: str, folder: Path, deadline: float) -> str | None:
    seen, changed_at = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        rows = [row for row in read_rows(folder) if row.part == part]
        done = sum(row.status != "running" for row in rows)
        if len(rows) + done != seen:
            seen, changed_at = len(rows) + done, now
        limit = rows[-1].seconds if rows and rows[-1].status == "running" else START_SECONDS
        if now - changed_at > limit:
            return f"passed its {limit:.0f} s"
        if now > deadline:
            return "the time of the whole run is over"
    return None if process.returncode == 0 else f"its process ended with {process.returncode}"


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(line.strip()[:200] for line in lines[-2:])


def _fail(plan: Plan, part: str, check: str, detail: str) -> None:
    append_row(plan.folder, Row(part=part, check=check, status="failed", detail=detail))


def _title(plan: Plan) -> str:
    return "GPU checks: dry run" if plan.is_dry_run else "GPU checks"


def _facts(plan: Plan, seconds: float) -> list[str]:
    machine = f"torch {version('torch')}, Python {platform.python_version()}, {seconds:.0f} s"
    if plan.is_dry_run:
        return [
            "A dry run on a CPU at tiny shapes: it shows that the script runs, not that a GPU "
            "does what it should. Speeds and memory in it mean nothing.",
            f"`benchmarks/gpu.sh --dry-run`; {machine}.",
        ]
    import torch

    return [f"`benchmarks/gpu.sh`; {torch.cuda.get_device_name(0)}, {machine}."]


def work(part: str, folder: Path, *, is_dry_run: bool, skip: Sequence[str]) -> int:
    """The checks of one part, in this process. Exit code 1: start another for the rest."""
    import torch
    from gpu_check import Bench

    device = torch.device("cpu") if is_dry_run else torch.device("cuda", 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    checks: tuple[Check, ...] = importlib.import_module(PARTS[part]).CHECKS
    for check in checks:
        if check.name in skip:
            continue
        place = folder / f"{part}-{checks.index(check)}"
        place.mkdir(exist_ok=True)
        bench = Bench(device=device, folder=place, is_dry_run=is_dry_run)
        if not _run_check(part, check, bench, folder):
            return 1
    return 0


def _run_check(part: str, check: Check, bench: Bench, folder: Path) -> bool:
    """Whether this process can go on afterwards: a CUDA error leaves it with nothing that works."""
    from gpu_check import CheckFailedError, NotRun

    append_row(
        folder, Row(part=part, check=check.name, status="running", seconds=check.limit_seconds)
    )
    started = time.monotonic()
    can_go_on = True
    status, detail = "passed", ""
    try:
        detail = check.run(bench)
    except NotRun as reason:
        status, detail = "not run", str(reason)
    except CheckFailedError as failure:
        status, detail = "failed", str(failure)
    except Exception as error:  # a check may fail in any way; the table says how
        traceback.print_exc()
        status, detail = "failed", f"{type(error).__name__}: {str(error).strip()[:300]}"
        can_go_on = "CUDA error" not in str(error)
    seconds = time.monotonic() - started
    append_row(
        folder, Row(part=part, check=check.name, status=status, seconds=seconds, detail=detail)
    )
    return can_go_on


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-checks"))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU at tiny shapes")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--seconds", type=float, default=480.0, help="of the whole run")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--skip", nargs="*", default=(), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        return work(given.part, given.out, is_dry_run=given.dry_run, skip=given.skip)
    if not given.dry_run:
        import torch

        if not torch.cuda.is_available():
            print("torch sees no GPU here; `--dry-run` runs the checks on the CPU.")
            return 2
    plan = Plan(
        folder=given.out.absolute(),
        parts=tuple(given.parts),
        seconds=given.seconds,
        is_dry_run=given.dry_run,
    )
    return run_all(plan)


if __name__ == "__main__":
    sys.exit(main())
