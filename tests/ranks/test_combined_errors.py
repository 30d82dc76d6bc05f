"""One error out of those of many ranks: of a size that does not grow with their number."""

from lmscale.errors import CheckpointError, ConfigError, TransientError
from lmscale.ranks.collectives import MAX_ERRORS, combine_errors


def test_of_hundreds_of_errors_that_differ_a_few_are_told_and_the_ranks_of_the_others():
    own_paths = [
        CheckpointError(f"rank-{rank}.safetensors cannot be written") for rank in range(64)
    ]
    found = combine_errors([*own_paths, None])
    assert isinstance(found, CheckpointError)
    assert found.problems == (
        *(f"{error} (rank {rank})" for rank, error in enumerate(own_paths[:MAX_ERRORS])),
        f"There are other errors on ranks {MAX_ERRORS}-63.",
    )


def test_a_mistake_behind_hundreds_of_failures_that_pass_is_told():
    passing = [TransientError(f"connection {rank} broke") for rank in range(64)]
    found = combine_errors([*passing, ConfigError("cannot work"), ConfigError("cannot work")])
    assert isinstance(found, ConfigError)
    assert "cannot work (ranks 64-65)" in found.problems
    assert len(found.problems) == MAX_ERRORS + 1
    assert found.problems[-1] == "There are other errors on ranks 7-63."


def test_of_one_ranks_mistakes_all_are_told_however_many_they_are():
    mistakes = ConfigError([f"mistake {number}" for number in range(3 * MAX_ERRORS)])
    found = combine_errors([mistakes, None])
    assert found.problems == tuple(f"{problem} (rank 0)" for problem in mistakes.problems)
    assert combine_errors([mistakes, mistakes]).problems == mistakes.problems


def test_as_many_ranks_as_there_are_with_the_same_problem_take_one_line():
    assert combine_errors([CheckpointError("same")] * 512).problems == ("same",)
