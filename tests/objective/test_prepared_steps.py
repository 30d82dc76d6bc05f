"""A step's arrays are the same bytes on any number of ranks and workers, near and far in a run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from labelled_data import LABELLED, labelled_recipe
from recipes import RECIPES
from tiny_run import tiny_config

from lmscale.config import RunConfig
from lmscale.config.objective import OBJECTIVES
from lmscale.objective.objective import build_preparation
from lmscale.stream.batches import Batch
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob

STEPS = 2
FAR = 10**9 + 8  # 24 windows a step: a step's first sample, too
# Workers, and whose arrays they hand over: rows of two samples, of labels, of drawn lengths.
IN_PROCESSES = {1: "masked_next", 2: "tags", 3: "bart"}
T5_IDS = {"start": 0, "end": 2, "sentinels": [511, 412]}  # pieces of the tokenizer
OTHERS = {
    "distill": {"objective": {"name": "distill", "teacher": "of-no-step"}},
    "t5 with ids of its own": RECIPES["t5"] | {"tokenizer.ids": T5_IDS},
    **RECIPES,
}
AUGMENTED = {f"{name}, augmented": name for name in ("classes", "matches")}  # one text, and pairs


@contextmanager
def opened_jobs(config: RunConfig, first_n: int) -> Iterator[Callable[[int], list[LoaderJob]]]:
    """For a number of ranks: each one's job, as it arrives in a process of its own."""
    preparation = build_preparation(config)
    with (
        ExitStack() as stack,
        open_stream(config.stream, seed=config.run.seed, shape=config.window) as stream,
    ):

        def jobs_of(ranks: int) -> list[LoaderJob]:
            jobs = [
                LoaderJob(
                    stream=stream, preparation=preparation, data_rank=rank,
                    plan=config.batch.plan(ranks), first_n=first_n, num_steps=STEPS,
                )
                for rank in range(ranks)
            ]  # fmt: skip
            jobs = pickle.loads(pickle.dumps(jobs))
            stack.callback(jobs[0].stream.close)
            return jobs

        yield jobs_of


def contents(batches: Iterable[Batch]) -> list:
    """All that is handed over, of every micro-batch."""
    return [
        (batch.first_n, batch.digest, batch.targets, batch.more_targets)
        + tuple((name, a.dtype.str, a.shape, a.tobytes()) for name, a in batch.arrays.items())
        for batch in batches
    ]


@pytest.mark.parametrize("first_n", [0, FAR])
@pytest.mark.parametrize("recipe", [*OTHERS, *LABELLED, *AUGMENTED])
def test_a_step_is_the_same_bytes_on_any_number_of_ranks_and_workers(
    tiny_data, labelled, tmp_path, recipe, first_n
):
    batch = {"global_windows": 24, "micro_windows": 3}
    if recipe in AUGMENTED:
        settings = labelled_recipe(AUGMENTED[recipe], labelled)
        augment = {"augment": {"delete": 0.2, "swap": 0.2}}
        settings = {**settings, "objective": settings["objective"] | augment}
    else:
        settings = OTHERS[recipe] if recipe in OTHERS else labelled_recipe(recipe, labelled)
    config = tiny_config(tiny_data, tmp_path, {**settings, "batch": batch})
    with opened_jobs(config, first_n) as jobs_of:
        (alone,) = jobs_of(1)
        wanted = [contents(alone.read_step(step)) for step in range(STEPS)]
        assert len(wanted[0]) == 8 and wanted[0] != wanted[1]
        for ranks in (2, 4, 8):
            jobs = jobs_of(ranks)
            for step in reversed(range(STEPS)):
                parts = [batch for job in jobs for batch in job.read_step(step)]
                assert contents(parts) == wanted[step]
        processes = [n for n, name in IN_PROCESSES.items() if (name, FAR) == (recipe, first_n)]
        for workers in (0, *processes):
            with open_loader(alone, workers=workers) as loader:
                assert [contents(step.micro_batches) for step in loader] == wanted


def test_no_objective_is_left_out():
    recipes = (*OTHERS.values(), *LABELLED.values())
    assert {r.get("objective", {"name": "causal"})["name"] for r in recipes} == set(OBJECTIVES.own)
