"""An answer stands in its context wherever a record says so, or the record is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import RunConfig, parse_config
from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.config.finetune import FinetuneConfig
from lmscale.config.load import validate_tree
from lmscale.corpus.answers import find_answer
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import load_corpus_manifest
from lmscale.corpus.fields import RecordFields
from lmscale.errors import ConfigError, DataError
from lmscale.finetune.survey import survey_data
from lmscale.tokenizer.codec import load_tokenizer

FIELDS = {"text_field": "question", "target_field": "context", "answer_field": "answers"}
SOURCE = CorpusSourceConfig.model_validate({"inputs": ["x"], **FIELDS})
FLAT = SOURCE.model_copy(update={"answer_start_field": "at"})


def ask(answers: Any, context: str = "Bach, or bach.", **more: Any) -> dict[str, Any]:
    return {"question": "who?", "context": context, "answers": answers, **more}


@pytest.mark.parametrize(
    ("answers", "span"),
    [
        ({"text": ["bach"], "answer_start": [9]}, (9, 13)),
        ({"text": ["bach", "Bach"], "answer_start": [9, 0]}, (9, 13)),
        ({"text": "Bach", "answer_start": 0}, (0, 4)),
        ([{"text": "bach", "answer_start": 9}, {"text": "Bach", "answer_start": 0}], (9, 13)),
        ({"text": [" or "], "answer_start": [5]}, (6, 8)),
        ({"text": ["or"]}, (6, 8)),
        (["bach"], (9, 13)),
        ("bach", (9, 13)),
        *[(nothing, None) for nothing in ({"text": [], "answer_start": []}, [], "", None)],
    ],
)
def test_answers_are_read_in_every_form_that_datasets_have(answers, span):
    assert find_answer(ask(answers), SOURCE) == span


def test_a_text_with_a_place_of_its_own_field_is_read_there():
    record = ask("ach", at=10)
    assert find_answer(record, FLAT) == (10, 13)
    assert find_answer(ask("ach", at=None), FLAT) == (1, 4)
    assert find_answer(ask("", at=None), FLAT) is None


@settings(max_examples=50)
@given(st.text(max_size=12), st.text(min_size=1, max_size=8), st.text(max_size=12))
def test_the_pieces_of_a_record_are_its_context_with_the_answer_between(before, answer, behind):
    context = before + answer + behind
    record = ask({"text": [answer], "answer_start": [len(before)]}, context)
    if not answer.strip():
        with pytest.raises(ValueError, match="without a word"):
            RecordFields(SOURCE).read(record)
        return
    marked = RecordFields(SOURCE).read(record)
    assert marked.has_span and "".join(marked.pieces[1:]) == context
    assert marked.pieces[2] == answer.strip()
    assert len(marked.pieces[1]) == len(before) + len(answer) - len(answer.lstrip())


def test_answers_that_do_not_stand_in_their_context_are_told_together(tmp_path):
    told = {
        "the answer 'bach' ('answers', answer_field) does not stand at character 8 of 'context', "
        "but at 9.": {"text": ["bach"], "answer_start": [8]},
        "the answer 'Händel' ('answers', answer_field) does not stand at character 0 of "
        "'context', nor anywhere in it.": {"text": ["Bach", "Händel"], "answer_start": [0, 0]},
        "the answer 'Händel' ('answers', answer_field) does not stand in 'context'.": "Händel",
        "the answer 'bach' ('answers', answer_field) does not stand at character -5 of "
        "'context', but at 9.": {"text": ["bach"], "answer_start": [-5]},
        "where an answer begins is true, no whole number.": {"text": "B", "answer_start": True},
        "an answer of 'answers' is a number, not text.": {"text": [7], "answer_start": [0]},
        "'answers' (answer_field) holds 2 texts and 1 answer_start.": {
            "text": ["a", "b"],
            "answer_start": [0],
        },
        "'answers' (answer_field) holds a number that is no answer": 7,
        "an answer of 'answers' is ' ', without a word.": {"text": " ", "answer_start": 5},
        "'context' holds null, not text.": None,
    }
    rows = [ask(answers) for answers in told.values()]
    rows[-1]["context"] = None
    for begin in (0, 5):  # so many are told, beyond those that are allowed
        write(tmp_path, rows[begin : begin + 5])
        with pytest.raises(DataError) as caught:
            build(tmp_path)
        text = "\n".join(caught.value.problems)
        for number, problem in enumerate([*told][begin : begin + 5], start=1):
            assert f"raw.jsonl:{number}: {problem}" in text, text
    write(tmp_path, [*rows, ask("bach")])
    build(tmp_path, {"max_bad_records": len(rows)})
    assert load_corpus_manifest(tmp_path / "corpus/quiz").dropped == {"broken": len(rows)}


def test_cleaning_keeps_an_answer_where_it_stands(tmp_path):
    context = "Cafe\u0301 zu,\r\n  Mu\u0308nchen\r\noffen 😀"
    answer = "Mu\u0308nchen\r\n"
    rows = [
        ask({"text": [answer], "answer_start": [context.index("M")]}, context),
        ask([], context),
        ask({"text": ["zu"], "answer_start": [context.index("zu")]}, context),
        ask({"text": ["zu"], "answer_start": [context.index("zu")]}, context + " "),
    ]
    write(tmp_path, rows)
    build(tmp_path)
    found = documents(tmp_path)
    for document in found:
        question = document["text"][: document["parts"][0]]
        assert question == "who?"
        assert document["text"][4:] == "Café zu,\n  München\noffen 😀"
    spans = [d["text"][slice(*d["span"])] if "span" in d else None for d in found]
    assert spans == ["München", None, "zu"]
    manifest = load_corpus_manifest(tmp_path / "corpus/quiz")
    assert (manifest.dropped, manifest.line_ends) == ({"duplicate": 1}, 4)


def test_all_questions_to_a_context_lie_on_one_side(tmp_path):
    rows = [
        {"question": f"which {n}?", "context": f"it is number {k} here", "answers": f"number {k}"}
        for k in range(40)
        for n in range(3)
    ]
    write(tmp_path, rows)
    build(tmp_path, heldout_fraction=0.5)
    sides = [
        {document["text"][document["parts"][0] :] for document in documents(tmp_path, split)}
        for split in ("train", "heldout")
    ]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 40 and all(sides)


def test_a_context_that_is_too_long_is_dropped_whole_and_counted(tmp_path):
    write(tmp_path, [ask("bach"), ask("bach", "Bach, or bach." * 9)])
    build(tmp_path, max_chars=60, on_overlong="split")
    manifest = load_corpus_manifest(tmp_path / "corpus/quiz")
    assert (manifest.dropped, len(documents(tmp_path))) == ({"overlong": 1}, 1)


def test_settings_of_answers_that_say_nothing_together_are_told_together():
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\n"
            "corpus:\n"
            "  sources:\n"
            "    a: {inputs: [x], answer_field: a}\n"
            "    b: {inputs: [x], answer_start_field: a}\n"
            "    c: {inputs: [x], target_field: t, answer_field: a, label_field: l}\n"
            "    d: {inputs: [x], target_field: t, answer_field: a, strip_html: true}\n"
            "    e: {inputs: [x], target_field: t, answer_field: t}\n"
            "    f: {inputs: [x], target_field: t, answer_field: a, label_names: [a]}\n"
        )
    for told in (
        "answer_field: an answer stands in a context; name its field in target_field",
        "answer_start_field is given, but no answer_field",
        "answer_field: a question has an answer, and no label or tags beside it",
        "strip_html: it could remove an answer",
        "target_field = 't', answer_field = 't': each has to name a field of its own",
        "label_names: 1 names are too many: spans have at most 0",
    ):
        assert told in str(caught.value)
    with pytest.raises(ValueError, match="strip_html: quiz has answers that it could remove"):
        CorpusConfig(strip_html=True, sources={"quiz": SOURCE})


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(folder: Path, source: dict[str, Any] | None = None, **corpus: Any) -> None:
    sources = {"quiz": {"inputs": [str(folder / "raw.jsonl")], **FIELDS, **(source or {})}}
    settings = {"folder": str(folder / "corpus"), "heldout_fraction": 0.0, "sources": sources}
    tree = {"run": {"name": "a"}, "corpus": settings | corpus}
    build_corpus(RunConfig.model_validate(tree).corpus)


def documents(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    paths = sorted((folder / f"corpus/quiz/{split}").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_survey_for_fine_tuning_counts_what_the_corpus_holds_out_and_the_shards_encode(
    tmp_path, labelled
):
    rows = [
        {"question": f"which {n}?", "context": f"it is number {k} here", "answers": f"mber {k}"}
        for k in range(40)
        for n in range(3)
    ]
    write(tmp_path, rows)
    build(tmp_path, heldout_fraction=0.5)
    data = {"train": str(tmp_path / "raw.jsonl"), "heldout_fraction": 0.5, **FIELDS}
    tree = {"name": "a", "base": "b", "task": "answers", "data": data}
    config = validate_tree(FinetuneConfig, tree, name="short.yaml")
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    survey = survey_data(config, tokenizer, has_bos=True, advance=lambda documents: None)
    for split in ("train", "heldout"):
        found = documents(tmp_path, split)
        assert survey.parts[split].documents == len(found)
        texts = [(d["text"][: d["parts"][0]], d["text"][d["parts"][0] :]) for d in found]
        lengths = [2 + sum(len(tokenizer.encode(text)) for text in pair) for pair in texts]
        assert survey.lengths(split).tolist() == lengths
