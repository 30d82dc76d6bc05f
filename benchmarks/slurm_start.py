"""How long from `lmscale launch slurm` to the first step on the test cluster, part by part.

    python benchmarks/slurm_start.py --rounds 5    # needs root and Slurm's packages

Every round submits a run of its own, with preflight, code frozen anew, nothing cached but what the
machine has in its page cache. The times come from the run's own files: the batch script's events
and output, the attempt's record, the log and the metrics. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]

from cluster import Cluster, wait_until  # noqa: E402
from demands import why_no_cluster  # noqa: E402
from forked_processes import ENVIRONMENT  # noqa: E402
from tiny_run import build_tiny_data, write_tiny_config  # noqa: E402

PARTS = (
    "launch: checks, frozen copy, sbatch",
    "Slurm: queue, start of the batch script",
    "preflight: two nodes, all-reduce, verdict",
    "srun, Python, torch, DeepSpeed; the ranks meet",
    "model, engine, data; claim of the folder",
    "first step",
)
SECONDS = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    arguments = parser.parse_args()
    reason = why_no_cluster()
    if reason:
        raise SystemExit(f"error: {reason}")
    rows = []
    with tempfile.TemporaryDirectory() as folder, Cluster(nodes=arguments.nodes) as cluster:
        data = Path(folder) / "data"
        build_tiny_data(data)
        for number in range(arguments.rounds):
            rows.append(time_start(cluster, data, Path(folder) / f"run-{number}", arguments.nodes))
            print(f"round {number + 1}: {sum(rows[-1]):.1f} s", file=sys.stderr)
    print("| part | seconds |\n|---|---:|")
    for part, seconds in zip(PARTS, zip(*rows, strict=True), strict=True):
        print(f"| {part} | {statistics.median(seconds):.1f} |")
    from_sbatch = [sum(row[1:]) for row in rows]
    print(
        f"| **from sbatch to the end of the first step** | {statistics.median(from_sbatch):.1f} |"
    )


def time_start(cluster: Cluster, data: Path, run: Path, nodes: int) -> list[float]:
    """Seconds of each of ``PARTS``, of one submission."""
    config = write_tiny_config(run.with_suffix(".yaml"), data, run, {"train.steps": 3})
    command = [sys.executable, "-m", "lmscale.cli.main", "launch", "slurm", str(config)]
    command += ["--cluster", "lab", "--nodes", str(nodes), "--json"]
    began = time.time()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**cluster.full_environment, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    submitted = time.time()
    wait_until(lambda: "finished" in read(run / "attempts.jsonl"), SECONDS, "the run's end")
    wait_until(lambda: not cluster.run("squeue", "--noheader").strip(), SECONDS, "the job's end")
    started = json.loads(read(run / "slurm/events.jsonl").splitlines()[0])["time"]
    output = "".join(read(path) for path in (run / "slurm").glob("job-*.out"))
    told = re.search(r"^(\S+) lmscale: starting", output, re.MULTILINE)
    assert told, output
    # The script writes whole seconds; preflight's end is known to half a second.
    fit = datetime.fromisoformat(told[1]).timestamp() + 0.5
    met = json.loads(read(run / "lease.json"))["time"]  # the claim comes right after the meeting
    first = json.loads(read(run / "metrics.jsonl").splitlines()[0])
    stepped = first["time"] - first["speed/step_seconds"]
    return [
        submitted - began,
        started - submitted,
        fit - started,
        met - fit,
        stepped - met,
        first["speed/step_seconds"],
    ]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    main()
