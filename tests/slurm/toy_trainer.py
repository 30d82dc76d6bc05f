"""What ``lmscale train`` leaves in a run's folder, step by step, without a model and without torch.

    srun PYTHON toy_trainer.py CONFIG [--run-folder RUN]

The ranks do not talk: each of them saves and ends on SIGUSR1, SIGTERM or the stop file. With
TOY_IS_DEAF they hear none of it. None does the last step while the run's folder has a file `hold`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack

from lmscale.config import load_config
from lmscale.files.jsonl import append_row
from lmscale.files.run_files import CONFIG_FILE
from lmscale.runs.attempts import AttemptLog
from lmscale.runs.commits import Commit, append_commit, read_commits

STEP_SECONDS = 0.1
SAVE_EVERY = 10

config = load_config(sys.argv[1])
folder = config.folder
rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
asked: list[str] = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    if "TOY_IS_DEAF" in os.environ:
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(number, lambda number, frame: asked.append(signal.Signals(number).name))


def say(text: str) -> None:
    instant = time.time()
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(instant))
    with open(folder / "logs" / f"rank-{rank:05d}.log", "a") as log:
        log.write(f"{when}.{int(instant % 1 * 1000):03d} INFO toy: {text}\n")


def save(step: int) -> None:
    append_commit(
        folder,
        Commit(
            step=step,
            n=step,
            folder=f"checkpoints/step-{step:09d}",
            sha256="",
            bytes=0,
            reason="regular",
            time=time.time(),
        ),
    )


def leave(code: int) -> None:
    place = os.environ["LMSCALE_EXITS"]
    with open(f"{place}/rank-{rank:05d}", "w") as file:
        file.write(str(code))
    sys.exit(code)


first = max((commit.step for commit in read_commits(folder)), default=0)
(folder / "logs").mkdir(exist_ok=True)
say(f"from step {first} with {world_size} ranks")
with ExitStack() as stack:
    if rank == 0:
        (folder / CONFIG_FILE).write_text(open(sys.argv[1]).read())
        attempt = stack.enter_context(
            AttemptLog(folder, first_step=first, world_size=world_size, zero_stage=1)
        )
    for step in range(first + 1, config.train.steps + 1):
        time.sleep(STEP_SECONDS)
        while step == config.train.steps and (folder / "hold").exists():
            time.sleep(STEP_SECONDS)
        if (folder / "stop").exists():
            asked.append("stop file")
        if rank == 0:
            attempt.step(step, STEP_SECONDS)
            append_row(folder / "ledger.jsonl", {"step": step - 1})
            loss = config.engine.optimizer.lr * 1000 + 1 / step
            figures = {"train/loss": loss, "train/tokens": 100 * step}
            figures |= {"speed/targets_per_second": 1000.0, "speed/step_seconds": STEP_SECONDS}
            append_row(folder / "metrics.jsonl", {"step": step, "time": time.time(), **figures})
        if asked or step % SAVE_EVERY == 0 or step == config.train.steps:
            say(f"step {step}")
            if rank == 0:
                save(step)
        if asked:
            if rank == 0:
                attempt.end(asked[0])
            say(f"stopped: {asked[0]}")
            (folder / "stop").unlink(missing_ok=True)
            leave(75)
say("finished")
leave(0)
