"""Two ranks, of which the second cannot read its part of the third step; then of the first."""

import json
from dataclasses import replace

from forked_ranks import one_group
from rank_cases import Case, opened, train

from lmscale.errors import DataError, LmscaleError
from lmscale.ranks.collectives import gather_json


def start(folder, number):
    data = (folder / "data.txt").read_text()
    with one_group() as ranks:
        saw = {str(step): fail_at(folder, data, ranks, step) for step in (3, 1)}
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(saw))


def fail_at(folder, data, ranks, step):
    """Every rank's error, and the steps of which it saw a report."""
    seen = []
    case = Case(name=str(step), data=data, folder=str(folder / f"run-{step}"))
    with opened(case, ranks) as run:
        batches = iter(run.loader)

        def cut_short():
            for number, batch in enumerate(batches, start=1):
                if number == step and ranks.rank == 1:
                    raise DataError("x-000007.tar: is cut.")
                yield batch

        error = None
        try:
            train(replace(run, loader=cut_short()), hook=lambda report: seen.append(report.step))
        except LmscaleError as caught:
            error = [type(caught).__name__, *caught.problems]
    return gather_json([error, seen])
