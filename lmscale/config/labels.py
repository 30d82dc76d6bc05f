"""What a dataset carries beside tokens: pairs, dialogues, labels, and what these stand for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from lmscale.files.strangers import EXACT, Flag, Text, checked

_TAG = re.compile(r"O|(?P<prefix>[BIES])(-(?P<kind>.+))?", re.DOTALL)
# Of int32, and of int16.
MOST_NAMES = {"classes": 2**31 - 1, "tags": 2**15 - 1, "numbers": 0, "spans": 0}


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The labels of a dataset. Raises ``ValueError`` for names that cannot be those of its kind."""

    __pydantic_config__ = EXACT
    kind: Literal["classes", "numbers", "tags", "spans"]
    """``classes``: each document is one of ``names``; ``tags``: each word is one of them;
    ``numbers``: each document has a number, as for a regression; ``spans``: each has an answer that
    stands in its second text, or none.
    """
    names: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        if problems := list(find_name_problems(self.kind, self.names)):
            raise ValueError("; ".join(problems))


def find_name_problems(kind: str, names: tuple[str, ...]) -> Iterator[str]:
    """Why these cannot be the names of a kind of labels."""
    most = MOST_NAMES[kind]
    if len(names) > most:
        yield f"{len(names):,} names are too many: {kind} have at most {most:,}"
    if not names and most:
        yield f"{kind} need names"
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield f"the names {', '.join(map(ascii, twice[:8]))} come more than once"
    if odd := [name for name in names if not name or not name.isprintable()]:
        yield f"{ascii(odd[0])} cannot be a name: it is empty, or cannot be shown"


def split_tags(names: Sequence[str]) -> list[tuple[str, str]] | None:
    """The prefix and the type of each tag that names entities, ``("B", "PER")`` of B-PER; None
    where they are tags of another kind.

    They are of entities where each is O, or B-, I-, E- or S- with a type, and one begins with B. A
    prefix alone has the type ``_``, as seqeval has it.
    """
    found = [_TAG.fullmatch(name) for name in names]
    tags = [(match["prefix"] or "O", match["kind"] or "_") for match in found if match]
    if len(tags) != len(names) or not any(prefix == "B" for prefix, _ in tags):
        return None
    return tags


class Carrying(Protocol):
    """What carries something, or wants it: a dataset, or the windows of an objective."""

    @property
    def has_pairs(self) -> bool: ...
    @property
    def labels(self) -> LabelSet | None: ...
    @property
    def has_turns(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a dataset carries beside its tokens, as its manifest says."""

    __pydantic_config__ = EXACT
    has_pairs: Flag = False
    labels: LabelSet | None = None
    chat_template: Text = ""

    @property
    def has_turns(self) -> bool:
        return bool(self.chat_template)


_CARRIED = TypeAdapter(Carried)


def parse_carried(tree: Any) -> Carried:
    """Of a manifest's JSON. Raises ``ValueError``."""
    if not isinstance(tree, dict):
        raise ValueError("is no manifest")
    names = [each.name for each in fields(Carried)]
    return checked(_CARRIED, {key: tree[key] for key in names if key in tree})


def find_not_carried(found: Carrying, wanted: Carrying, *, where: str) -> list[str]:
    """What an objective reads that a dataset does not have."""
    problems = []
    if wanted.has_pairs and not found.has_pairs:
        problems.append(
            f"{where}: its documents are no pairs. Name target_field of its source in "
            "corpus.sources, and build corpus and shards again."
        )
    if wanted.has_turns and not found.has_turns:
        problems.append(
            f"{where}: its documents are no dialogues. Name messages_field of its source in "
            "corpus.sources (or instruction_field and output_field), and build corpus and shards "
            "again."
        )
    if wanted.labels is not None and found.labels != wanted.labels:
        problems.append(
            f"{where}: the objective reads {describe_labels(wanted.labels)}, but its documents "
            f"have {describe_labels(found.labels)}. Set the objective's names to them, or "
            "label_field, tags_field, answer_field and label_names of its source in "
            "corpus.sources, and build corpus and shards again."
        )
    return problems


def describe_labels(labels: LabelSet | None) -> str:
    if labels is None:
        return "no labels"
    names = ", ".join(labels.names[:8]) + (", …" if len(labels.names) > 8 else "")
    return f"{labels.kind}{f' ({names})' if names else ''}"
