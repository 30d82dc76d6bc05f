"""``lmscale evaluate RUN --written``: held-out pairs, of which the model writes the second text."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from lmscale.cli.options import echo_json
from lmscale.cli.scored import keep_figures, say_weights
from lmscale.errors import EXIT_RESUMABLE, ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.cli.scoring_ranks import ModelAsked
    from lmscale.evaluation.run import LoadedRun
    from lmscale.evaluation.written import WrittenSet
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.stop import StopRequests

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class WrittenChoice:
    """What is to be written."""

    set_names: list[str] | None
    limit: int | None  # pairs of a set
    max_tokens: int | None  # of a text
    examples: int  # shown of a set

    @classmethod
    def of(
        cls,
        set_names: list[str] | None,
        limit: int | None,
        max_tokens: int | None,
        examples: int | None,
    ) -> WrittenChoice:
        shown = _EXAMPLES if examples is None else examples
        names = set_names or None
        return cls(set_names=names, limit=limit, max_tokens=max_tokens, examples=shown)


def refuse_misfits(
    written: bool, max_tokens: int | None, examples: int | None, *, others: Sequence[object]
) -> None:
    """Raise ``ConfigError`` for options that mean nothing together."""
    if not written and (max_tokens is not None or examples is not None):
        raise ConfigError(
            "--max-tokens and --examples are of texts that are written: give --written as well."
        )
    if written and any(each is not None for each in others):
        raise ConfigError(
            "--max-windows, --baseline, --errors, --tasks and --include-path have nothing to say "
            "of what is written. Make it two commands."
        )


def evaluate_written(
    asked: ModelAsked, ranks: Ranks, choice: WrittenChoice, *, as_json: bool
) -> None:
    """Write, score, print, and keep the figures beside the run's own."""
    from lmscale.cli.scoring_ranks import find_asked, load_asked, open_ranks
    from lmscale.evaluation.held_out import check_evaluation_sets
    from lmscale.evaluation.written import check_writing
    from lmscale.runs.run_folder import load_run_config
    from lmscale.runs.stop import StoppedError, StopRequests

    check_writing(load_run_config(asked.run))
    check_evaluation_sets(asked.run, choice.set_names)
    signals = (signal.SIGTERM, signal.SIGUSR1)
    with StopRequests(asked.run, watch_file=False, signals=signals) as stop:
        stop.leave_unless(lambda: False)
        try:
            found = find_asked(asked, ranks)
            with open_ranks(ranks) as device:
                loaded = load_asked(asked, found, device, ranks)
                sets = _write_sets(loaded, choice, ranks, stop)
        except StoppedError as stopped:
            say(f"stopped by {stopped}; nothing was scored", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None
    if not ranks.is_first:
        return
    if asked.hf is None:  # others' weights are no figure of the run
        _record(asked, loaded, choice, sets)
    _show(loaded, choice, sets, f"those of {asked.hf}" if asked.hf else loaded.weights, as_json)


def _write_sets(
    loaded: LoadedRun, choice: WrittenChoice, ranks: Ranks, stop: StopRequests
) -> dict[str, WrittenSet]:
    from lmscale.cli.scoring_ranks import shown
    from lmscale.evaluation.held_out import (
        open_evaluation_sets,
        warn_of_other_writing,
        warn_of_replaced,
    )
    from lmscale.evaluation.written import MAX_TOKENS, check_templates, read_pairs, write_set
    from lmscale.ranks.collectives import failing_together
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.stream.ledger import RECORD
    from lmscale.train.votes import StopPoll

    with failing_together():
        datasets = open_evaluation_sets(
            loaded.config,
            loaded.tokenizer.fingerprint,
            choice.set_names,
            check_files=ranks.is_first,
        )
        check_templates(loaded.config.folder, datasets)
    if (loaded.config.folder / RECORD).exists() and ranks.is_first:
        warn_of_other_writing(datasets, loaded.config.folder, bos_id=loaded.bos_id)
        warn_of_replaced(datasets, loaded.config.folder)
    poll = StopPoll(stop.requested)
    stop.wait_to_be_asked()
    sets = {}
    for name, dataset in datasets.items():
        with closing(dataset), failing_together():
            pairs = read_pairs(dataset, limit=choice.limit)
        with shown(ranks, f"writing {name}", len(pairs), "texts") as advance:
            sets[name] = write_set(
                loaded,
                pairs,
                max_tokens=choice.max_tokens or MAX_TOKENS,
                data=plan_mesh(ranks).data,
                advance=advance,
                between_batches=poll,
            )
    return sets


def _record(
    asked: ModelAsked, loaded: LoadedRun, choice: WrittenChoice, sets: dict[str, WrittenSet]
) -> None:
    """Beside the run's own figures; a folder that cannot be written to is told, and no error."""
    from lmscale.evaluation.written import (
        MAX_TOKENS,
        PREFIX,
        choose_evenly,
        name_written,
        render_examples_table,
    )

    texts = {
        f"{PREFIX}/{name}": render_examples_table(choose_evenly(each.examples, choice.examples))
        for name, each in sets.items()
    }
    keep_figures(
        asked.run,
        loaded,
        name_written(sets),
        limit=choice.limit,
        settings={"max_tokens": choice.max_tokens or MAX_TOKENS},
        texts=texts,
    )


def _show(
    loaded: LoadedRun,
    choice: WrittenChoice,
    sets: dict[str, WrittenSet],
    weights: str,
    as_json: bool,
) -> None:
    from lmscale.evaluation.written import choose_evenly, render_examples, render_written

    if as_json:
        row = {"step": loaded.step, "weights": weights, "limit": choice.limit}
        shown = {name: each.to_json(choice.examples) for name, each in sets.items()}
        echo_json(row | {"sets": shown})
        return
    say(render_written(sets))
    say(f"step {loaded.step:,}; the likeliest token each time")
    say_weights(weights)
    for name, each in sets.items():
        say(render_examples(name, choose_evenly(each.examples, choice.examples)))
