"""Three real ranks over gloo run a script once; each test looks at a part of what they saw."""

import json
import os
import sys
from pathlib import Path

import pytest

from launcher.local import plan_ranks, run_ranks
from launcher.rendezvous import find_free_port
from lmscale.errors import CheckpointError, ConfigError, CorruptionError, DataError, GuardError
from lmscale.ranks.collectives import (
    broadcast_object,
    combine_errors,
    error_from_json,
    error_to_json,
    fail_together,
    failing_together,
    gather_errors,
    gather_json,
    sum_float64,
)

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from datetime import timedelta
import torch
from lmscale.errors import ConfigError, DataError, LmscaleError, TransientError
from lmscale.ranks import collectives as c
from lmscale.ranks.ranks import open_process_group, ranks_from_environment

class OwnError(DataError):
    "Known to this script alone."

def raised(action):
    try:
        action()
    except LmscaleError as error:
        return [type(error).__name__, list(error.problems)]

def block():
    with c.failing_together():
        if ranks.rank == 1:
            raise OwnError("shard is cut")

ranks = ranks_from_environment()
r = ranks.rank
with open_process_group(ranks, torch.device("cpu"), timedelta(seconds=60)):
    saw = {
        "sum": c.sum_float64([r, 2.0**52 if r == 0 else 1.0, 0.5]),
        "gathered": c.gather_json({"rank": r, "text": "é" * (r * 40)}),
        "broadcast": c.broadcast_object({"from": r, "list": [1, None]}),
        "no error": raised(lambda: c.fail_together(None)),
        "one": raised(lambda: c.fail_together(ConfigError(["a", "b"]) if r == 2 else None)),
        "equal": raised(lambda: c.fail_together(DataError("same"))),
        "some": raised(lambda: c.fail_together(DataError("x") if r < 2 else ConfigError("y"))),
        "block": raised(block),
        "transient": raised(lambda: c.fail_together(TransientError("EIO") if r == 1 else None)),
        "mistake": raised(
            lambda: c.fail_together(TransientError("EIO") if r < 2 else DataError("cut"))
        ),
    }
    c.barrier()
with open(f"saw-{r}.json", "w") as file:
    json.dump(saw, file)
"""


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """What each of three ranks saw."""
    folder = tmp_path_factory.mktemp("collectives")
    plans = plan_ranks(
        [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{SCRIPT}"],
        num_ranks=3,
        logs=folder,
        port=find_free_port(),
        cores=1,
        environ={},
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        outcome = run_ranks(plans)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert outcome.exit_code == 0, outcome.problems
    return [json.loads((folder / f"saw-{rank}.json").read_text()) for rank in range(3)]


pytestmark = pytest.mark.ranks


def everywhere(saw, key):
    values = [of_rank[key] for of_rank in saw]
    assert values[1:] == values[:-1], f"the ranks disagree about {key}"
    return values[0]


def test_a_sum_is_the_same_everywhere_and_exact_for_large_counts(saw):
    assert everywhere(saw, "sum") == [3.0, 2.0**52 + 2, 1.5]


def test_every_rank_gets_every_ranks_value_whatever_its_length(saw):
    assert everywhere(saw, "gathered") == [{"rank": r, "text": "é" * (r * 40)} for r in range(3)]


def test_rank_0s_value_reaches_all(saw):
    assert everywhere(saw, "broadcast") == {"from": 0, "list": [1, None]}


def test_without_an_error_all_go_on(saw):
    assert everywhere(saw, "no error") is None


def test_one_ranks_error_is_raised_on_all_with_its_rank(saw):
    assert everywhere(saw, "one") == ["ConfigError", ["a (rank 2)", "b (rank 2)"]]


def test_an_error_that_all_ranks_met_is_told_once(saw):
    assert everywhere(saw, "equal") == ["DataError", ["same"]]


def test_different_errors_are_all_told_and_the_first_ranks_class_counts(saw):
    assert everywhere(saw, "some") == ["DataError", ["x (ranks 0-1)", "y (rank 2)"]]


def test_what_may_pass_stays_so_on_all_ranks_unless_one_has_met_a_mistake(saw):
    assert everywhere(saw, "transient") == ["TransientError", ["EIO (rank 1)"]]
    assert everywhere(saw, "mistake") == ["DataError", ["EIO (ranks 0-1)", "cut (rank 2)"]]


def test_an_error_inside_a_block_is_raised_on_all_as_its_nearest_known_class(saw):
    assert everywhere(saw, "block") == ["DataError", ["shard is cut (rank 1)"]]


def test_alone_everything_works_without_a_group():
    assert sum_float64([1, 2.5]) == [1.0, 2.5]
    assert gather_json("x") == ["x"]
    assert broadcast_object([1]) == [1]
    assert gather_errors(None) == [None]
    fail_together(None)
    with pytest.raises(GuardError, match="^diverged$"):
        fail_together(GuardError("diverged"))
    with pytest.raises(CheckpointError, match="^torn$"), failing_together():
        raise CheckpointError("torn")


def test_ranks_with_the_same_problem_are_named_as_ranges():
    gathered = [ConfigError("p") if rank in (0, 1, 2, 5, 7, 8) else None for rank in range(9)]
    assert str(combine_errors(gathered)) == "p (ranks 0-2, 5, 7-8)"
    assert combine_errors([None, None]) is None
    assert isinstance(combine_errors([None, DataError("d")]), DataError)


def corrupt(node):
    return CorruptionError(f"{node} is bad", summary=f"{node} differs", bad_nodes={node: "why"})


def test_the_nodes_that_a_corruption_names_reach_the_other_ranks():
    gathered = [error_from_json(error_to_json(error)) for error in (None, None, corrupt("n2"))]
    found = combine_errors(gathered)
    assert isinstance(found, CorruptionError)
    assert (found.summary, found.bad_nodes) == ("n2 differs", {"n2": "why"})


def test_no_node_is_to_blame_where_most_ranks_find_fault_with_themselves():
    found = combine_errors([corrupt("n1"), corrupt("n1"), None])
    assert isinstance(found, CorruptionError)
    assert (found.summary, found.bad_nodes) == ("n1 differs", {})
