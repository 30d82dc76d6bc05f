"""What three real ranks agree on after a step that they have not done alike."""

import json

from forked_ranks import one_group

from lmscale.errors import CorruptionError
from lmscale.ranks.collectives import fail_together, gather_json
from lmscale.train.loop import _agree, _judge_skip
from lmscale.train.votes import RANKS_DIFFER

# (gradient norm, is_skipped) of ranks 0, 1, 2
CASES = {
    "alike": [(0.5, 0.0)] * 3,
    "all skipped": [(float("inf"), 1.0)] * 3,
    "one skipped": [(0.5, 0.0), (float("nan"), 1.0), (0.5, 0.0)],
    "one did not": [(float("nan"), 1.0), (float("inf"), 1.0), (0.5, 0.0)],
    "another norm": [(0.5, 0.0), (0.5, 0.0), (0.8, 0.0)],
}


def start(folder, number):
    with one_group() as ranks:
        saw = {name: gather_json(agree(case, ranks)) for name, case in CASES.items()}
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(saw))


def agree(case, ranks):
    figures = (1.0, 0.0, *case[ranks.rank])
    agreed = _agree(figures, None, None, ())
    problems = []
    if agreed.stop_reason == RANKS_DIFFER:
        try:
            fail_together(_judge_skip(figures, agreed.num_skipped, ranks.world_size, 7))
        except CorruptionError as error:
            problems = list(error.problems)
    return [agreed.gradient_norm, agreed.num_skipped, agreed.stop_reason, problems]
