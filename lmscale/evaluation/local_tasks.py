"""Tasks made of a corpus' own held-out part, for machines without a network: a folder of files that
``lmscale evaluate --tasks`` and lm-evaluation-harness itself read.

No run has learned from these texts that was trained on the corpus' other part. The same corpus and
seed make the same files.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmscale.corpus.documents import read_documents
from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.passages import Language, Spot, find_ending, find_spots
from lmscale.evaluation.task_files import RECORD, render_rows
from lmscale.files.atomic import to_json_bytes, writing
from lmscale.files.output_folder import output_folder

_CHOICES = 4

Row = dict[str, Any]
Make = Callable[[Spot, Sequence[Spot], Language, random.Random], Row | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to ask of a spot."""

    asks: str  # for people
    make: Make  # None: nothing can be asked there
    settings: Mapping[str, Any]  # of the task file


@dataclass(frozen=True, kw_only=True)
class MadeTask:
    name: str
    asks: str
    rows: int


def _last_word(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    ending = find_ending(spot, language)
    if ending is None:
        return None
    return {"context": ending.context, "target": ending.gap + ending.word, "word": ending.word}


def _word_choice(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    ending = find_ending(spot, language)
    if ending is None:
        return None
    others = [ending.gap + word for word in draw.sample(ending.others, _CHOICES - 1)]
    return {"context": ending.context} | _shuffle(ending.gap + ending.word, others, draw)


def _continuation(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    others = _draw_others(spot, spots, draw, lambda other: other.document != spot.document)
    return _choose_next(spot, others, draw)


def _next_passage(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    def is_near(other: Spot) -> bool:
        return other.document == spot.document and other.after[0] not in "".join(
            (*spot.before, *spot.after)
        )

    def document(each: Spot) -> int:
        return each.document

    first = bisect_left(spots, spot.document, key=document)
    own = spots[first : bisect_right(spots, spot.document, lo=first, key=document)]
    return _choose_next(spot, _draw_others(spot, own, draw, is_near), draw)


def _choose_next(spot: Spot, others: Sequence[Spot], draw: random.Random) -> Row | None:
    if len(others) < _CHOICES - 1:
        return None
    wrong = [spot.gap + other.after[0].strip() for other in others]
    return {"context": spot.context} | _shuffle(spot.gap + spot.after[0].strip(), wrong, draw)


def _order(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    first, *rest = (passage.strip() for passage in spot.after)
    if len({first, *rest}) < 3:
        return None
    second, third = rest
    orders = [(first, third, second), (second, first, third), (third, second, first)]
    between = " " if language == "en" else ""
    wrong = [spot.gap + between.join(order) for order in orders]
    return {"context": spot.context} | _shuffle(
        spot.gap + between.join((first, second, third)), wrong, draw
    )


def _beginning(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row | None:
    others = _draw_others(spot, spots, draw, lambda other: other.document != spot.document)
    if len(others) < _CHOICES - 1:
        return None
    row = _shuffle(spot.context, [other.context for other in others], draw)
    return {"ending": spot.gap + spot.after[0].strip()} | row


def _text(spot: Spot, spots: Sequence[Spot], language: Language, draw: Any) -> Row:
    return {"text": "".join((*spot.before, *spot.after)).strip()}


def _draw_others(
    spot: Spot, spots: Sequence[Spot], draw: random.Random, fits: Callable[[Spot], bool]
) -> list[Spot]:
    """Up to three spots that fit, whose texts differ."""
    found: dict[str, Spot] = {}
    for _ in range(60):
        other = spots[draw.randrange(len(spots))]
        if fits(other) and other.after[0].strip() != spot.after[0].strip():
            found.setdefault(other.after[0].strip(), other)
        if len(found) == _CHOICES - 1:
            break
    return list(found.values())


def _shuffle(right: str, wrong: Sequence[str], draw: random.Random) -> Row:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return {"choices": choices, "gold": choices.index(right)}


_CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",  # the white space is the text's own
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}
_CHOICE_OF_CONTEXTS = _CHOICE | {
    "doc_to_text": "gold",
    "doc_to_target": "ending",
    # What is scored is the same text behind each: to divide by a length would mean nothing.
    "metric_list": _CHOICE["metric_list"][:1],
}
_CLOZE = {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "target"}
_WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "context",
    "doc_to_target": "word",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
_ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    # Not by words, of which Chinese text shows none.
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
}
KINDS = {
    "last_word": Kind(asks="is the last word the likeliest one", make=_last_word, settings=_CLOZE),
    "word_choice": Kind(asks="which of 4 words ends it", make=_word_choice, settings=_CHOICE),
    "continuation": Kind(
        asks="which of 4 passages, 3 of other documents, goes on",
        make=_continuation,
        settings=_CHOICE,
    ),
    "next_passage": Kind(
        asks="which of 4 passages of the same document goes on",
        make=_next_passage,
        settings=_CHOICE,
    ),
    "order": Kind(asks="which of 4 orders the next passages have", make=_order, settings=_CHOICE),
    "beginning": Kind(
        asks="which of 4 beginnings an ending belongs to",
        make=_beginning,
        settings=_CHOICE_OF_CONTEXTS,
    ),
    "written_word": Kind(asks="is the last word written", make=_last_word, settings=_WRITTEN),
    "text": Kind(asks="bits per byte of whole passages", make=_text, settings=_ROLLING),
}


def make_tasks(
    sources: Iterable[Path], out: Path, *, rows: int = 200, seed: int = 0, force: bool = False
) -> list[MadeTask]:
    """Write the tasks of each language that the held-out documents of ``sources``, folders of a
    corpus, are in: at most ``rows`` questions each.

    Raises ``DataError`` where the documents are not there or give no question, ``ConfigError``
    where ``out`` is another folder, or is there and ``force`` is not given.
    """
    out = out.absolute()
    _check_folder(out, force=force)
    texts = (text for source in sources for text in read_documents(source / "heldout"))
    made: list[MadeTask] = []
    files: dict[str, bytes] = {}
    for language, spots in sorted(find_spots(texts).items()):
        for kind_name, kind in KINDS.items():
            name = f"local_{language}_{kind_name}"
            questions = list(_make_rows(kind, spots, language, rows, f"{seed}/{name}"))
            if not questions:
                continue
            data = out / "data" / f"{name}.jsonl"
            files[f"{name}.yaml"] = _render_task(name, kind, language, data)
            files[f"data/{name}.jsonl"] = render_rows(questions)
            made.append(MadeTask(name=name, asks=kind.asks, rows=len(questions)))
    if not made:
        raise DataError(
            "The held-out documents of the corpus give no question: they are too few or too short, "
            "or neither Chinese nor of Latin letters. Raise corpus.heldout_fraction and build the "
            "corpus again."
        )
    files[RECORD] = to_json_bytes({"seed": seed, "tasks": {task.name: task.rows for task in made}})
    with writing("tasks", out), output_folder(out) as folder:
        (folder / "data").mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return made


def _check_folder(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not (out / RECORD).is_file():
        raise ConfigError(f"--out {out}: is there, and was not made by this. Name another folder.")
    if not force:
        raise ConfigError(f"--out {out}: the tasks are there. --force makes them again.")
    others = [path for path in sorted(out.rglob("*")) if path.is_file()]
    own = _own_files(out)
    if strange := [path for path in others if path.relative_to(out).as_posix() not in own]:
        raise ConfigError(
            f"--out {out}: --force would delete {', '.join(map(str, strange[:5]))}"
            f"{' …' if len(strange) > 5 else ''}, which were not made by this. Move them away."
        )


def _own_files(out: Path) -> set[str]:
    """By what is recorded there. Raises ``ConfigError`` for a record that says nothing."""
    try:
        names = list(json.loads((out / RECORD).read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{out / RECORD}: is damaged. Name another folder.") from None
    yamls = {f"{name}.yaml" for name in names}
    return {RECORD} | yamls | {f"data/{name}.jsonl" for name in names}


def _make_rows(
    kind: Kind, spots: Sequence[Spot], language: Language, most: int, seed: str
) -> Iterator[Row]:
    """At most so many questions, of spots in a drawn order."""
    draw = random.Random(seed)  # str seeds hash alike on every platform and run
    order = list(range(len(spots)))
    draw.shuffle(order)
    for number in order:
        if most <= 0:
            return
        row = kind.make(spots[number], spots, language, draw)
        if row is not None:
            most -= 1
            yield row


def _render_task(name: str, kind: Kind, language: Language, data: Path) -> bytes:
    # lm-eval looks for data from where it is started: hence the whole path. lmscale also finds them
    # beside the file, wherever the folder was moved.
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **kind.settings,
        "metadata": {"version": 1.0},
    }
    if kind.settings is _WRITTEN:
        pattern = r"([A-Za-z]+)" if language == "en" else "([\u4e00-\u9fff]{2})"
        settings["filter_list"] = [
            {
                "name": "word",
                "filter": [
                    {"function": "regex", "regex_pattern": pattern},
                    {"function": "take_first"},
                ],
            }
        ]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return f"# {kind.asks}\n{text}".encode()
