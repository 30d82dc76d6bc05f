"""Small runs that score tasks in the loop, for test_tasks.py: what each rank of a start does."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from forked_ranks import one_group
from rank_cases import Case, opened, train


def start(folder: Path, number: int) -> None:
    from lmscale.runs.stop import StoppedError
    from lmscale.runs.trackers import open_trackers
    from lmscale.train.scoring import complete_evaluation, open_evaluator
    from lmscale.train.votes import StopPoll

    with one_group() as ranks:
        for row in json.loads((folder / "cases.json").read_text()):
            case = Case(**row)
            with opened(case, ranks) as run:
                scope: Any = open_trackers(run.folder) if ranks.is_first else nullcontext()
                poll = StopPoll(lambda: None)
                with scope as trackers, open_evaluator(run, trackers, poll) as evaluator:
                    train(run, hook=evaluator)
                    # A request that one rank alone has heard of.
                    poll._left = 1  # it asks once a second, and this may take less
                    poll.requested = lambda: "SIGTERM" if ranks.rank == 1 else None
                    try:
                        evaluator.score_tasks(99, is_last=True)
                    except StoppedError as stopped:
                        (run.folder / f"stopped-{ranks.rank}").write_text(stopped.reason)
                    poll.requested = lambda: None
                    scorer = evaluator.task_scorer
                    if scorer.tasks is not None:
                        broken = scorer.tasks.loaded["tasks"]["local_zh_order"]
                        broken.set_config("doc_to_text", "{{ nothing }}")
                    evaluator.score_tasks(100, is_last=True)
                    if scorer.tasks is not None:  # what fails on the model's side, before an order
                        broken.set_config("doc_to_text", "context")
                        numbers = scorer.tasks.loaded["tasks"]["local_zh_last_word"]
                        numbers.doc_to_target = lambda row: 5
                    evaluator.score_tasks(101, is_last=True)
                    (run.folder / f"went-on-{ranks.rank}").touch()
            # A kill between the last save and the last tasks: another start scores them, once.
            metrics = run.folder / "metrics.jsonl"
            if ranks.is_first:
                rows = [row for row in metrics.read_text().splitlines() if '"step": 3' not in row]
                metrics.write_text("".join(f"{row}\n" for row in rows))
            for _ in range(2):
                with opened(case, ranks) as run:
                    complete_evaluation(run, StopPoll(lambda: None))
