"""After a step all ranks decide alike, also where they have not computed alike."""

import json
import math
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked_ranks import one_group, run_on_ranks, run_starts

from lmscale.errors import ConfigError, CorruptionError
from lmscale.ranks.collectives import fail_together, gather_json
from lmscale.train import assemble
from lmscale.train.loop import _agree, _judge_skip
from lmscale.train.votes import RANKS_DIFFER

# ---- On the ranks: what three real ranks agree on after a step that they have not done alike

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
    numbers = torch.tensor((1.0, 0.0, *case[ranks.rank]), dtype=torch.float64)
    agreed = _agree(numbers, None, None, ())
    problems = []
    if agreed.stop_reason == RANKS_DIFFER:
        try:
            fail_together(_judge_skip(agreed, ranks.world_size, 7))
        except CorruptionError as error:
            problems = list(error.problems)
    return [agreed.gradient_norm, agreed.num_skipped, agreed.stop_reason, problems]


def open_without_the_objective_on_one(ranks):
    """What each rank hears where rank 1 has no such package."""

    def build(config):
        if ranks.rank == 1:
            raise ConfigError("It is not installed.")

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(assemble, "open_stream", lambda *_, **__: nullcontext())
        patch.setattr(assemble, "build_preparation", build)
        setting: Any = SimpleNamespace(
            config=SimpleNamespace(stream=None, window=None, run=SimpleNamespace(seed=1)),
            ranks=ranks,
            history=SimpleNamespace(rewinds=()),
            tokenizer=SimpleNamespace(fingerprint=""),
        )
        with pytest.raises(ConfigError) as caught:
            assemble._open_at(setting, assemble.Start(), None, stack)
    return list(caught.value.problems)


# ---- The tests


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """By case: of each rank the gradient norm, the ranks that skipped, why to stop, problems."""
    folder = tmp_path_factory.mktemp("agreement")
    run_starts(Path(__file__), folder, (3,))
    return json.loads((folder / "saw.json").read_text())


def test_every_rank_hears_the_same_norm_and_the_same_decision(saw):
    for name, (first, *others) in saw.items():
        assert all(other == first for other in others), name
    assert saw["alike"][0] == [0.5, 0, None, []]
    assert saw["another norm"][0][0] == pytest.approx(0.6)


def test_a_step_that_all_have_skipped_is_no_difference(saw):
    norm, num_skipped, reason, _ = saw["all skipped"][0]
    assert norm == math.inf and num_skipped == 3 and reason is None


@pytest.mark.parametrize(
    ("case", "rank", "did"), [("one skipped", 1, "skipped the"), ("one did not", 2, "did the")]
)
def test_a_rank_that_skips_or_not_against_the_others_is_named_and_nothing_is_saved(
    saw, case, rank, did
):
    norm, _, reason, problems = saw[case][0]
    assert norm == math.inf and reason == RANKS_DIFFER
    (problem,) = problems
    assert f"this rank {did} update of step 7" in problem and problem.endswith(f"(rank {rank})")


def test_an_objective_that_one_rank_cannot_import_ends_all_of_them(tmp_path):
    heard = run_on_ranks(open_without_the_objective_on_one, 2, tmp_path)
    assert heard == [["It is not installed. (rank 1)"]] * 2
