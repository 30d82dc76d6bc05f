"""Three real ranks over gloo exchange once; each test looks at a part of what they saw."""

import pytest
from forked_ranks import run_on_ranks

from lmscale.errors import (
    CheckpointError,
    ConfigError,
    CorruptionError,
    DataError,
    GuardError,
    LmscaleError,
    TransientError,
)
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

pytestmark = pytest.mark.ranks


class OwnError(DataError):
    """Known to this file alone."""


def exchange(ranks):
    """All that the tests look at, on one rank of three."""
    own = ranks.rank

    def raised(error=None):
        try:
            fail_together(error)
        except LmscaleError as told:
            return [type(told).__name__, list(told.problems)]

    def block():
        try:
            with failing_together():
                if own == 1:
                    raise OwnError("shard is cut")
        except LmscaleError as told:
            return [type(told).__name__, list(told.problems)]

    return {
        "sum": sum_float64([own, 2.0**52 if own == 0 else 1.0, 0.5]),
        "gathered": gather_json({"rank": own, "text": "é" * (own * 40)}),
        "broadcast": broadcast_object({"from": own, "list": [1, None]}),
        "no error": raised(),
        "one": raised(ConfigError(["a", "b"]) if own == 2 else None),
        "equal": raised(DataError("same")),
        "some": raised(DataError("x") if own < 2 else ConfigError("y")),
        "block": block(),
        "transient": raised(TransientError("EIO") if own == 1 else None),
        "mistake": raised(TransientError("EIO") if own < 2 else DataError("cut")),
    }


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """What each of three ranks saw."""
    return run_on_ranks(exchange, 3, tmp_path_factory.mktemp("collectives"))


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
