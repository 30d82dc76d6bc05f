"""``lmscale probe``: what a model has to answer for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, print_notes
from lmscale.cli.scored import keep_figures
from lmscale.errors import EXIT_RESUMABLE, ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmscale.config.training import Weights
    from lmscale.evaluation.beginnings import Beginning, Lengths
    from lmscale.evaluation.bias import Filled, Scored
    from lmscale.evaluation.privacy import Privacy
    from lmscale.evaluation.run import LoadedRun
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.stop import StopRequests
    from lmscale.stream.stream import Stream

app = typer.Typer(
    help="What a model has to answer for: what it repeats, whom it favours.", no_args_is_help=True
)
LengthOption = Annotated[
    list[int] | None,
    typer.Option(
        "--length",
        min=2,
        help="Tokens of a span that counts as repeated; may be given several times. Default: 10, "
        "20, 50.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A loaded run, on the ranks that work together."""

    loaded: LoadedRun
    ranks: Ranks
    stop: StopRequests


@app.command()
def privacy(
    run: RunArgument,
    length: LengthOption = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a document that the model goes on from.")
    ] = 50,
    texts: Annotated[
        int, typer.Option(min=1, help="At most so many documents read, and as many held out.")
    ] = 200,
    max_shards: Annotated[
        int | None,
        typer.Option(min=1, help="Search only so many of the training shards, spread evenly."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the documents.")] = 0,
    step: StepOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the model repeats word for word of what it has read: behind beginnings of documents that
    it has read, and of held-out ones; and what there looks like personal data, masked.

    Ranks that srun or torchrun starts share the work.
    """
    from lmscale.evaluation.beginnings import Lengths, check_read, open_read
    from lmscale.evaluation.privacy import check_probe, render_privacy
    from lmscale.runs.run_folder import load_run_config

    sizes = sorted(set(length or (10, 20, 50)))
    lengths = Lengths(prompt_tokens, sizes[-1])
    config = load_run_config(run)
    check_probe(config, lengths)
    check_read(run)
    with _open(run, step, weights) as opened, ExitStack() as files:
        loaded = opened.loaded
        stream, samples = open_read(loaded.config, run, step=loaded.step)
        files.enter_context(stream)
        drawn = _draw(opened, stream, samples, texts, lengths, seed)
        found = _probe_privacy(opened, stream, drawn, lengths, tuple(sizes), max_shards)
    if not opened.ranks.is_first:
        return
    shown = render_privacy(found)
    settings = {"prompt_tokens": prompt_tokens, "texts": texts, "seed": seed}
    keep_figures(
        run,
        loaded,
        found.figures,
        limit=max_shards,
        settings=settings,
        texts={"privacy": _fenced(shown)},
    )
    if as_json:
        echo_json({"step": loaded.step, "weights": loaded.weights, **found.to_json()})
        return
    say(shown)
    say(f"step {loaded.step:,}")


def _draw(
    opened: _Open,
    stream: Stream,
    samples: int,
    count: int,
    lengths: Lengths,
    seed: int,
) -> dict[str, list[Beginning]]:
    """By origin. Raises ``ConfigError`` where no document is long enough."""
    from lmscale.evaluation.beginnings import draw_held_out, draw_read
    from lmscale.evaluation.held_out import open_evaluation_sets
    from lmscale.evaluation.privacy import HELD_OUT, READ, TEXT
    from lmscale.ranks.collectives import failing_together

    loaded = opened.loaded
    with failing_together(), ExitStack() as files:
        drawn = {READ: draw_read(stream, samples, count, lengths, seed=seed)}
        if not drawn[READ]:
            raise ConfigError(
                f"No document that the run has read has {sum(lengths) + 1:,} tokens in one window: "
                "lower --prompt-tokens or --length."
            )
        sets = open_evaluation_sets(
            loaded.config, loaded.tokenizer.fingerprint, check_files=opened.ranks.is_first
        )
        for dataset in sets.values():
            files.callback(dataset.close)
        held_out = draw_held_out(sets.values(), count, lengths, seed=seed)
    if held_out:
        return drawn | {HELD_OUT: held_out, TEXT: held_out}
    if opened.ranks.is_first:
        print_notes(
            [
                "no held-out document is long enough, or there is no set (evaluation.sets): what "
                "is common anyway cannot be told from what was kept"
            ]
        )
    return drawn


def _probe_privacy(
    opened: _Open,
    stream: Stream,
    drawn: Mapping[str, list[Beginning]],
    lengths: Lengths,
    sizes: tuple[int, ...],
    max_shards: int | None,
) -> Privacy:
    from lmscale.cli.scoring_ranks import shown
    from lmscale.evaluation.privacy import TEXT, judge, search_shards, write_behind
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.train.votes import StopPoll

    loaded, ranks = opened.loaded, opened.ranks
    data, poll = plan_mesh(ranks).data, StopPoll(opened.stop.requested)
    opened.stop.wait_to_be_asked()
    asked = [each for name, own in drawn.items() if name != TEXT for each in own]
    with shown(ranks, "writing", len(asked), "texts") as advance:
        written = write_behind(
            loaded,
            asked,
            max_tokens=lengths.rest,
            data=data,
            advance=advance,
            between_batches=poll,
        )
    texts, first = {}, 0
    for name, own in drawn.items():
        texts[name] = [each.rest for each in own] if name == TEXT else written[first:][: len(own)]
        first += 0 if name == TEXT else len(own)
    datasets = list(stream.datasets.values())
    total = sum(entry.tokens for dataset in datasets for entry in dataset.manifest.shards)
    with shown(ranks, "searching the shards", total, "tokens") as advance:
        met, searched = search_shards(
            [text for own in texts.values() for text in own],
            sizes,
            datasets,
            data=data,
            max_shards=max_shards,
            advance=advance,
            between_shards=poll,
        )
    return judge(drawn, texts, met, loaded.tokenizer, shards=searched, prompt_tokens=lengths.prompt)


@app.command()
def bias(
    run: RunArgument,
    templates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sentences of your own, in place of lmscale's."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Only this language's sentences; may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    step: StepOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether the model finds what is often said of one group likelier of it than of another: pairs
    of sentences, English and Chinese, that differ in whom they are about.

    For runs that predict the next token, and for masked encoders.
    """
    from lmscale.evaluation.bias import (
        OWN,
        describe_scoring,
        fill,
        judge_leanings,
        load_categories,
        name_leanings,
        render_leanings,
    )
    from lmscale.runs.run_folder import load_run_config

    how = describe_scoring(load_run_config(run))
    categories = load_categories(templates or OWN, language or ())
    filled = fill(categories)
    with _open(run, step, weights) as opened:
        scored = _score_filled(opened, filled)
    if not opened.ranks.is_first:
        return
    loaded = opened.loaded
    leanings = judge_leanings(categories, filled, scored, seed=seed)
    shown = render_leanings(leanings, how=how)
    if templates is None:  # figures of other sentences are others
        texts = {"bias": _fenced(shown)}
        keep_figures(run, loaded, name_leanings(leanings), limit=None, texts=texts)
    if as_json:
        rows = [each.to_json() for each in leanings]
        echo_json({"step": loaded.step, "weights": loaded.weights, "scored": how, "rows": rows})
        return
    say(shown)
    say(f"step {loaded.step:,}")


def _score_filled(opened: _Open, filled: Sequence[Filled]) -> list[Scored | None]:
    from lmscale.cli.scoring_ranks import shown
    from lmscale.evaluation.likelihoods import score_filled
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.train.votes import StopPoll

    poll = StopPoll(opened.stop.requested)
    opened.stop.wait_to_be_asked()
    with shown(opened.ranks, "scoring", 2 * len(filled), "sentences") as advance:
        return score_filled(
            opened.loaded,
            filled,
            data=plan_mesh(opened.ranks).data,
            advance=advance,
            between_batches=poll,
        )


@contextmanager
def _open(run: Path, step: int | None, weights: Weights | None) -> Iterator[_Open]:
    """The run's model on all ranks that were started, until the block ends."""
    from lmscale.cli.scoring_ranks import (
        ModelAsked,
        find_asked,
        find_ranks,
        load_asked,
        open_ranks,
    )
    from lmscale.runs.stop import StoppedError, StopRequests

    ranks = find_ranks(run)
    asked = ModelAsked(run=run, step=step, weights=weights)
    with StopRequests(run, watch_file=False, signals=(signal.SIGTERM, signal.SIGUSR1)) as stop:
        stop.leave_unless(lambda: False)
        try:
            found = find_asked(asked, ranks)
            with open_ranks(ranks) as device:
                yield _Open(loaded=load_asked(asked, found, device, ranks), ranks=ranks, stop=stop)
        except StoppedError as stopped:
            say(f"stopped by {stopped}; nothing was measured", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None


def _fenced(text: str) -> str:
    """As Markdown shows a table as it stands."""
    return f"```\n{text}\n```"
