import pickle

import pytest

from lmscale import errors
from lmscale.errors import ConfigError, CorruptionError, GuardError, LmscaleError


def test_an_error_carries_all_its_problems():
    error = ConfigError(["first", "second"])
    assert error.problems == ("first", "second")
    assert str(error) == "first\nsecond"


def test_a_single_problem_need_not_be_a_list():
    assert LmscaleError("only").problems == ("only",)


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "CheckpointError", "ClusterError"])
def test_a_users_mistake_exits_with_2(name):
    assert getattr(errors, name)("x").exit_code == errors.EXIT_USER == 2


def test_what_may_pass_by_itself_exits_with_1_so_that_the_batch_script_starts_again():
    error = errors.TransientError("the network")
    assert error.exit_code == errors.EXIT_FAILED == 1
    assert pickle.loads(pickle.dumps(error)).exit_code == 1


def test_the_guard_exits_with_76():
    assert GuardError("diverged").exit_code == errors.EXIT_GUARD == 76


def test_an_error_crosses_process_boundaries_whole():
    error = pickle.loads(pickle.dumps(GuardError(["a", "b"])))
    assert type(error) is GuardError
    assert error.problems == ("a", "b")


def test_a_corruption_keeps_the_nodes_that_it_names():
    error = CorruptionError(["a"], summary="rank 3 differs", bad_nodes={"n2": "why"})
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, again.summary, again.bad_nodes) == (
        ("a",),
        "rank 3 differs",
        {"n2": "why"},
    )
