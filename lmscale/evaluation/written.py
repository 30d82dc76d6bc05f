"""Held-out pairs of texts: the second one as a run's model writes it, beside the one wanted. Of a
dialogue what was said before, and the assistant's last answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.supervised import CompletionConfig, DialogueConfig, PairsConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.held_out import find_other_templates
from lmscale.evaluation.prompts import Prompt, ask_behind, ask_ids, load_run_template
from lmscale.files.printing import count_of
from lmscale.metrics.written import WrittenScore, check_sacrebleu, score_written
from lmscale.objective.pieces import find_pieces
from lmscale.ranks.mesh import Axis
from lmscale.shards.members import PARTS, REPLIES
from lmscale.stream.dataset import Dataset

if TYPE_CHECKING:
    from lmscale.evaluation.run import LoadedRun

MAX_TOKENS = 256  # of a text that is written
PREFIX = "written"  # of the names of figures: written/SET/bleu
_TOKENS_AT_ONCE = 2**18
_SHOWN = 300  # characters of a text beside others


class Pair(NamedTuple):
    """The ids of both texts, without those that begin and end a document.

    Of a dialogue all that stands before its last answer, and that with what ends it: special
    tokens, which are no text.
    """

    first: list[int]
    second: list[int]


class Example(NamedTuple):
    first: str
    wanted: str
    written: str


@dataclass(frozen=True, kw_only=True)
class WrittenSet:
    """What was written of a set, and how near it comes."""

    score: WrittenScore
    unended: int  # texts that the model did not end
    examples: Sequence[Example] = field(repr=False)  # all of them

    def to_json(self, examples: int) -> dict[str, Any]:
        shown = [example._asdict() for example in choose_evenly(self.examples, examples)]
        return self.score.to_json() | {"unended": self.unended, "examples": shown}


def check_writing(config: RunConfig) -> None:
    """Raise ``ConfigError`` where there is nothing to compare, before a model is loaded."""
    if not isinstance(config.objective, PairsConfig | CompletionConfig | DialogueConfig):
        raise ConfigError(
            "--written compares the second texts of held-out pairs with what the model writes: it "
            "takes a run of pairs, completion or dialogue, and this one has "
            f"{config.objective.name}. Leave it out."
        )
    check_sacrebleu()


def check_templates(folder: Path, datasets: Mapping[str, Dataset]) -> None:
    """Raise ``ConfigError`` for sets of dialogues that are written otherwise than the run's."""
    if problems := find_other_templates(datasets, folder):
        raise ConfigError(problems)


def read_pairs(dataset: Dataset, *, limit: int | None = None) -> list[Pair]:
    """The pairs of a set in stored order; with a limit so many at most, spread evenly over it."""
    total = sum(entry.documents for entry in dataset.manifest.shards)
    wanted = set(choose_evenly(range(total), limit)) if limit is not None else None
    pairs = enumerate(_read_pairs(dataset))
    return [pair for number, pair in pairs if wanted is None or number in wanted]


def _read_pairs(dataset: Dataset) -> Iterator[Pair]:
    bos_id = dataset.manifest.bos_id
    at_once = max(1, _TOKENS_AT_ONCE // dataset.shape.tokens)
    for first in range(0, dataset.num_windows, at_once):
        rows = dataset.read(np.arange(first, min(first + at_once, dataset.num_windows)))
        pieces = find_pieces(rows, mask_documents=True)
        is_there = pieces.lengths > 0
        tokens = rows.tokens.reshape(-1)
        starts, lengths = pieces.starts[is_there], pieces.lengths[is_there]
        documents = [slice(*each) for each in zip(starts, starts + lengths, strict=True)]
        if dataset.shape.has_turns:
            replies = rows.members[REPLIES].reshape(-1)
            for each in documents:
                begin, end = find_last_answer(replies[each])
                yield Pair(tokens[each][:begin].tolist(), tokens[each][begin:end].tolist())
            continue
        for each, part in zip(documents, rows.members[PARTS], strict=True):
            ids = tokens[each]
            begin = int(bos_id is not None and ids[0] == bos_id)
            yield Pair(ids[begin:part].tolist(), ids[part:-1].tolist())


def find_last_answer(replies: np.ndarray) -> tuple[int, int]:
    """Where in a dialogue's tokens it begins and ends. ``replies``: 1 for those of answers."""
    end = int(np.flatnonzero(replies)[-1]) + 1
    before = np.flatnonzero(replies[:end] == 0)
    return (int(before[-1]) + 1 if len(before) else 0), end


def write_set(
    loaded: LoadedRun,
    pairs: Sequence[Pair],
    *,
    max_tokens: int,
    data: Axis,
    advance: Callable[[float], None] = lambda texts: None,
    between_batches: Callable[[], None] = lambda: None,
) -> WrittenSet:
    """The likeliest second text of each pair, token by token, and its score; on every rank."""
    from lmscale.evaluation.answering import write_answers

    config, tokenizer = loaded.config, loaded.tokenizer
    written = write_answers(
        loaded.model,
        tokenizer,
        _ask(loaded, pairs),
        max_tokens=max_tokens,
        batch_tokens=batch_tokens(config),
        data=data,
        advance=advance,
        between_batches=between_batches,
    )
    examples = [
        Example(*map(tokenizer.decode, (pair.first, pair.second, list(answer.ids))))
        for pair, answer in zip(pairs, written, strict=True)
    ]
    return WrittenSet(
        score=score_written([each.written for each in examples], [e.wanted for e in examples]),
        unended=sum(not answer.is_ended for answer in written),
        examples=examples,
    )


def _ask(loaded: LoadedRun, pairs: Sequence[Pair]) -> list[Prompt]:
    config = loaded.config
    if isinstance(config.objective, DialogueConfig):
        template = load_run_template(config, loaded.tokenizer)
        return [ask_behind(template, pair.first) for pair in pairs]
    return [ask_ids(config, pair.first, bos_id=loaded.bos_id) for pair in pairs]


def batch_tokens(config: RunConfig) -> int:
    """Of a batch that is written, which keeps no activations of a backward pass: four times those
    of a training's micro-batch, at least 8,192.
    """
    return max(4 * config.batch.micro_windows * config.stream.sequence_length, 8192)


def name_written(sets: dict[str, WrittenSet]) -> dict[str, float]:
    """All figures by the names that trackers know: ``written/SET/bleu``."""
    return {
        f"{PREFIX}/{name}/{figure}": value
        for name, each in sets.items()
        for figure, value in each.score.figures.items()
    }


def render_written(sets: dict[str, WrittenSet]) -> str:
    """A table of all sets, and what their figures mean."""
    width = max(map(len, ("set", *sets)))
    lines = [f"{'set':<{width}}   texts    BLEU    chrF  ROUGE-L  exact match"]
    for name, each in sets.items():
        score = each.score
        lines.append(
            f"{name:<{width}}  {score.texts:>6,}  {score.bleu:>6.2f}  {score.chrf:>6.2f}  "
            f"{score.rouge_l:>7.2f}  {score.exact_match:>6.2f} ({score.exact:,})"
        )
    for signature in dict.fromkeys(each.score.bleu_signature for each in sets.values()):
        lines.append(f"BLEU: {signature}")
    score = next(iter(sets.values())).score
    lines += [f"chrF: {score.chrf_signature}", f"ROUGE-L: {score.rouge_l_signature}"]
    for name, each in sets.items():
        if each.unended:
            lines.append(f"{name}: {count_of(each.unended, 'text')} cut, not ended by the model")
    return "\n".join(lines)


def render_examples(name: str, examples: Sequence[Example]) -> str:
    """Texts side by side."""
    return "\n".join(
        f"\n{name}\n" + "\n".join(f"  {what:<7} {_shorten(text)}" for what, text in row)
        for row in (zip(("read", "wanted", "written"), each, strict=True) for each in examples)
    )


def render_examples_table(examples: Sequence[Example]) -> str:
    """The same as a table of Markdown, which TensorBoard shows."""
    rows = (" | ".join(_shorten(text).replace("|", "\\|") for text in each) for each in examples)
    return "\n".join(["| read | wanted | written |", "|---|---|---|", *(f"| {r} |" for r in rows)])


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def choose_evenly(values: Sequence[Any], count: int) -> list[Any]:
    """``count`` of them, or all, spread evenly."""
    count = min(count, len(values))
    return [values[place * len(values) // count] for place in range(count)]
