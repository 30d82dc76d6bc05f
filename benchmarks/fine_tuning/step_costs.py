"""What a step costs that trains all of a model, or a part: CPU seconds, side by side.

    python benchmarks/fine_tuning/step_costs.py --folder runs/fine-tuning

The ways of ``signs_2000`` (``rows.ROWS``) take turns in one process, round after round, on the same
labelled micro-batches. Printed are medians over the rounds, and their ratios within a round to that
of the whole model, by the CPU time of the process, which a busy machine bears.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from rows import BASES, HERE, ROWS, lmscale, make_base

sys.path.insert(0, str(HERE.parent))

from step import CLOCKS, measure, ratio
from training_loops import LmscaleLoop, TrainingLoop

from lmscale.api import iterate_steps
from lmscale.config import RunConfig, load_config
from lmscale.ranks.ranks import Ranks, open_process_group

ROW, WHOLE = "signs_2000", "all"
STEPS_AHEAD = 8  # that are read once and used in turn


def plan_ways(folder: Path) -> dict[str, RunConfig]:
    """The whole configuration of each way, whose corpus and shards are built."""
    configs = {}
    for way, settings in ROWS[ROW].items():
        if way == "from scratch":
            continue
        path = (folder / f"{ROW} {way}.yaml".replace(" ", "_")).resolve()
        asked = [word for setting in settings for word in ("--set", setting)]
        short = str(HERE / f"{ROW}.yaml")
        lmscale(folder, "finetune", short, "--dry-run", "--write", str(path), *asked)
        for command in ("corpus build", "shards build"):
            lmscale(folder, *command.split(), str(path))
        configs[way] = load_config(path)
    return configs


def open_loop(config: RunConfig, device: torch.device) -> TrainingLoop:
    steps = list(iterate_steps(config, steps=STEPS_AHEAD))
    return LmscaleLoop(config, config.batch.plan(1), device, itertools.cycle(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of each way in a round")
    given = parser.parse_args()
    make_base(given.folder, BASES[ROW])
    configs = plan_ways(given.folder)
    os.chdir(given.folder)  # the configurations' paths are of it
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with ExitStack() as stack:
        stack.enter_context(open_process_group(Ranks(), device))
        loops = {way: open_loop(config, device) for way, config in configs.items()}
        for loop in loops.values():
            stack.callback(loop.close)
        timings = measure(loops, rounds=given.rounds, steps=given.steps, clock=CLOCKS["process"])
    for way, timing in timings.items():
        share = ratio(timings[WHOLE], timing)  # how many times as fast the whole model is
        print(f"{way:10} {timing.step_seconds:8.3f} CPU s a step, {share:6.3f} of {WHOLE}'s")


if __name__ == "__main__":
    main()
