"""A tiny corpus whose documents carry something: pairs, dialogues, labels, tags, answers; and its
shards.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig

ADJECTIVES = {"red": "rot", "big": "groß", "old": "alt", "new": "neu", "small": "klein"}
ANIMALS = {"cat": "Katze", "dog": "Hund", "bird": "Vogel", "fish": "Fisch"}
THINGS = {"house": "Haus", "tree": "Baum", "table": "Tisch", "book": "Buch"}
NOUNS = {**ANIMALS, **THINGS}
GERMAN = {**ADJECTIVES, **NOUNS}
PHRASES = [
    (*adjectives, noun)
    for count in (1, 2)
    for adjectives in itertools.permutations(ADJECTIVES, count)
    for noun in NOUNS
]
FIELDS: dict[str, dict[str, Any]] = {
    "pairs": {"text_field": "en", "target_field": "de"},
    "dialogues": {"messages_field": "messages"},
    "classes": {"label_field": "kind", "label_names": ["animal", "thing"]},
    "numbers": {"label_field": "score"},
    "matches": {
        "text_field": "en",
        "target_field": "de",
        "label_field": "is_it",
        "label_names": ["false", "true"],
    },
    "tags": {
        "text_field": "words",
        "tags_field": "tags",
        "label_names": ["adjective", "animal", "thing"],
    },
    "answers": {
        "text_field": "question",
        "target_field": "context",
        "answer_field": "answers",
    },
}
_ENCODER = {"family": "encoder", "layers": 1, "width": 32, "heads": 4, "dropout": 0.0}
_NAMES = {kind: fields.get("label_names", []) for kind, fields in FIELDS.items()}
# A run's settings for what an encoder learns of each source.
ENCODERS: dict[str, dict[str, Any]] = {
    "classes": {
        "model": _ENCODER | {"pooler": True, "text_classes": 2},
        "objective": {"name": "classes", "names": _NAMES["classes"]},
    },
    "numbers": {
        "model": _ENCODER | {"pooler": True, "text_classes": 1},
        "objective": {"name": "numbers"},
    },
    "matches": {
        "model": _ENCODER | {"pooler": True, "text_classes": 2, "token_types": 2},
        "objective": {"name": "classes", "names": _NAMES["matches"], "of_pairs": True},
    },
    "tags": {
        "model": _ENCODER | {"token_classes": 3},
        "objective": {"name": "tags", "names": _NAMES["tags"]},
    },
    "answers": {
        "model": _ENCODER | {"token_classes": 2, "token_types": 2},
        "objective": {"name": "answers"},
    },
}
_PAIRS = {"family": "encoder_decoder", "layers": 1, "width": 32, "heads": 4}
# What is learned of documents that carry something, by the source's name, or one beside it.
LABELLED: dict[str, dict[str, Any]] = {
    "pairs": {"model": _PAIRS, "objective": {"name": "pairs"}},
    "completion": {"objective": {"name": "completion"}},
    "dialogue": {"objective": {"name": "dialogue"}, "stream.sequence_length": 112},
    **ENCODERS,
}


def labelled_recipe(name: str, labelled: RunConfig) -> dict[str, Any]:
    """Of ``LABELLED`` with its source and tokenizer: as those of recipes.py."""
    source = {"completion": "pairs", "dialogue": "dialogues"}.get(name, name)
    return LABELLED[name] | {
        "stream.sources": {name: {"shards": f"{labelled.shards.folder}/{source}/train"}},
        "stream.packing": "best_fit",
        "tokenizer": labelled.tokenizer.model_dump(),
    }


def records(kind: str) -> list[dict[str, Any]]:
    """One for each phrase, a function of it."""
    made = []
    for words in PHRASES:
        text, noun = " ".join(words), words[-1]
        german = " ".join(GERMAN[word] for word in words)
        tags = ["adjective"] * (len(words) - 1) + ["animal" if noun in ANIMALS else "thing"]
        made.append(
            {
                "pairs": {"en": text, "de": german},
                "dialogues": {"messages": dialogue(text, german, number=len(made))},
                "classes": {"text": text, "kind": tags[-1]},
                "matches": {
                    "en": text,
                    "de": german if len(made) % 2 else "ein " + german,
                    "is_it": len(made) % 2 == 1,
                },
                "numbers": {"text": text, "score": len(words) / 2},
                "tags": {"words": list(words), "tags": tags},
                "answers": _ask(len(made), words),
            }[kind]
        )
    return made


def _ask(number: int, words: tuple[str, ...]) -> dict[str, Any]:
    """What it is, how it is, or where it is, which its context does not say."""
    context = f"a {' '.join(words)}."
    question, answer = (("what", words[-1]), ("how", words[0]), ("where", ""))[number % 3]
    texts = [answer] * bool(answer)
    starts = [context.index(f" {answer}") + 1 for answer in texts]
    return {
        "question": f"{question} is it?",
        "context": context,
        "answers": {"text": texts, "answer_start": starts},
    }


def dialogue(text: str, german: str, *, number: int) -> list[dict[str, str]]:
    """Of one to three turns of each side, some behind a system's message."""
    asked = {"de": german, "en": text, "words": str(len(text.split()))}
    turns = [{"role": "system", "content": "be brief"}] * (number % 3 == 0)
    for question, answer in [*asked.items()][: 1 + number % 3]:
        turns.append({"role": "user", "content": f"{question}: {text}"})
        turns.append({"role": "assistant", "content": answer})
    return turns


def labelled_tree(data: Path, sources: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "run": {"name": "labelled", "folder": str(data / "run")},
        "corpus": {
            "folder": str(data / "corpus"),
            "sources": {
                kind: {"inputs": [str(data / f"{kind}.*")], **fields}
                for kind, fields in (FIELDS if sources is None else sources).items()
            },
            "heldout_fraction": 0.1,
        },
        "tokenizer": {
            "folder": str(data / "tokenizer"),
            "vocab_size": 320,
            "chat_template": "plain",
        },
        "shards": {
            "folder": str(data / "shards"),
            "max_bytes": 2**16,
            "block_tokens": 1024,
            "processes": 1,
        },
    }


def build_labelled_data(folder: Path) -> None:
    """The corpus of all sources (of which two are Parquet), a tokenizer, and shards."""
    import pyarrow
    import pyarrow.parquet

    from lmscale.corpus.build import build_corpus
    from lmscale.shards.build import build_shards
    from lmscale.tokenizer.train import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for kind in FIELDS:
        if kind in ("classes", "tags"):
            table = pyarrow.Table.from_pylist(records(kind))
            pyarrow.parquet.write_table(table, folder / f"{kind}.parquet")
        else:
            lines = "".join(json.dumps(record) + "\n" for record in records(kind))
            (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
    config = RunConfig.model_validate(labelled_tree(folder))
    build_corpus(config.corpus)
    # Not of those that came later: the others' losses are of these pieces.
    kinds = [kind for kind in FIELDS if kind not in ("answers", "dialogues")]
    train_tokenizer(config.tokenizer, config.corpus.folder, kinds)
    build_shards(config)
