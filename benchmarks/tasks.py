"""The demo with tasks in its loop beside the same steps without: what they take, and nothing more.

    OMP_NUM_THREADS=1 python benchmarks/tasks.py [--steps 60] [--every 20] [--rounds 4]

The runs take turns. Both see the same samples, so the losses must be the same, bit for bit. Of the
steps' own seconds in metrics.jsonl the fastest tenth counts, as others may use the machine too;
what the tasks take is ``tasks/seconds``. Needs the extra lm-eval.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from baselines import DEMO, build_data, lmscale

SETTINGS = {
    "train.log_every_steps": 1,
    "engine.schedule.decay_steps": 20,
    "checkpoint.every_steps": 100_000,
    "evaluation.sets": {},
    "evaluation.every_steps": 0,
    "evaluation.at_end": False,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    step_seconds: float  # the slowest of the fastest tenth of the steps
    task_seconds: tuple[float, ...]  # of each time that the tasks were scored
    losses: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps from scoring to scoring")
    parser.add_argument("--questions", type=int, default=50, help="of each task, at most")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-tasks-") as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        build_data(folder)
        words = ("--out", "tasks", "--questions", given.questions, "--force")
        print(lmscale(folder, "suite", "make", DEMO, *words))
        tasks = {"evaluation.tasks": ["./tasks"], "evaluation.tasks_every_steps": given.every}
        common = SETTINGS | {"train.steps": given.steps}
        rounds = [
            (measure(folder, common), measure(folder, common | tasks)) for _ in range(given.rounds)
        ]
    print(render(rounds))


def measure(folder: Path, settings: dict[str, object]) -> Measured:
    """Train a run of these settings, on one rank."""
    run = folder / "runs/measured"
    shutil.rmtree(run, ignore_errors=True)
    named = settings | {"run.name": "measured", "run.folder": str(run)}
    words = [w for key, value in named.items() for w in ("--set", f"{key}={json.dumps(value)}")]
    lmscale(folder, "train", DEMO, *words)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    seconds = [row["speed/step_seconds"] for row in steps[1:]]
    return Measured(
        step_seconds=statistics.quantiles(seconds, n=10)[0],
        task_seconds=tuple(row["tasks/seconds"] for row in rows if "tasks/seconds" in row),
        losses=tuple(row["train/loss"] for row in steps),
    )


def render(rounds: list[tuple[Measured, Measured]]) -> str:
    """A line a round, and the medians over the rounds."""
    lines = ["round  step ms: without    with  ratio   the tasks' own s"]
    ratios = []
    for number, (without, with_tasks) in enumerate(rounds, start=1):
        before, after = 1e3 * without.step_seconds, 1e3 * with_tasks.step_seconds
        ratios.append(after / before)
        own = ", ".join(f"{seconds:.2f}" for seconds in with_tasks.task_seconds)
        lines.append(f"{number:5}  {before:16.1f}  {after:6.1f}  {ratios[-1]:5.3f}   {own}")
    own = [seconds for _, with_tasks in rounds for seconds in with_tasks.task_seconds]
    same = all(without.losses == with_tasks.losses for without, with_tasks in rounds)
    lines += [
        f"a step with tasks in the loop / without: {statistics.median(ratios):.3f}",
        f"the tasks' own seconds: {min(own):.2f} at least, {statistics.median(own):.2f} the median",
        f"losses of all steps are the same: {'yes' if same else 'NO'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
