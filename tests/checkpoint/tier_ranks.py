"""What two real ranks do as if on two nodes, in several starts of one run."""

import json
import os
from contextlib import closing, nullcontext
from pathlib import Path

from forked_ranks import one_group
from rank_cases import Case, opened

from lmscale.checkpoint.places.local_tier import open_node_place
from lmscale.ranks.collectives import gather_json
from lmscale.runs.attempts import AttemptLog
from lmscale.train.loop import train_steps
from lmscale.train.progress import ProgressCounter
from lmscale.train.saver import Saver

SHARED = {"checkpoint.every_steps": 2, "checkpoint.asynchronous": False}
# Deals the same elements otherwise to the ranks, which neither world size nor stage tells.
DEALT = {**SHARED, "engine.optimizer.decay": ["linear"]}
# (run, which of the nodes each rank is on, steps to do before all are killed, whether any is saved,
# overrides)
STARTS = (
    ("run", (0, 1), 5, True, {}),
    ("run", (0, 1), 3, True, {}),
    ("run", (1, 0), 1, False, {}),  # each has only the other's files
    ("run", (0, 1), 1, False, {}),
    ("dealt", (0, 1), 5, True, SHARED),
    ("dealt", (0, 1), 1, False, DEALT),
)


def start(folder: Path, number: int) -> None:
    name, nodes, steps, saves, more = STARTS[number]
    rank = int(os.environ["RANK"])
    os.environ |= {
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": str(rank),
        "NODE_DISK": str(folder / f"disk{nodes[rank]}"),
    }
    data = (folder / "data.txt").read_text()
    overrides = {
        "train.steps": 20,
        "checkpoint.every_steps": 100,
        "checkpoint.local.folder": "$NODE_DISK",
        "checkpoint.local.every_minutes": 1e-9,
        "engine.zero_stage": 2,
        **more,
    }
    case = Case(name="run", data=data, folder=str(folder / name), overrides=overrides)
    with one_group() as ranks, opened(case, ranks) as run:
        attempt = (
            AttemptLog(run.folder, first_step=run.start.step, world_size=2, zero_stage=2)
            if ranks.is_first
            else nullcontext()
        )
        with attempt:
            losses = train_until_killed(run, steps, saves=saves)
        place = open_node_place(run.config)
        saw = {
            "began at": run.start.step,
            "losses": losses,
            "on the nodes": gather_json(
                [place.list_steps(), len(list(place.root.rglob("rank-*")))]
            ),
        }
    if ranks.is_first:
        (folder / f"saw-{number}.json").write_text(json.dumps(saw))


def train_until_killed(run, steps, *, saves):
    """Step → loss. No save on the way out, as none comes of a kill."""
    counter = ProgressCounter(run.start)
    losses = {}
    with closing(Saver(run=run, counter=counter, ledger=None)) as saver:
        for report in train_steps(
            run.engine,
            run.loader,
            run.config,
            save=saver.wants if saves else tuple,
            first_step=run.start.step,
        ):
            counter(report)
            saver(report)
            losses[report.step] = report.loss
            if len(losses) == steps:
                saver.finish()
                return losses
    raise AssertionError("the run is over")
