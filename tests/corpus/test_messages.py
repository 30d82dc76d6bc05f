"""Dialogues in raw files: what one is, what a broken one is called, what becomes of a long one."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from labelled_data import labelled_tree, records

from lmscale.config import RunConfig, parse_config
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import load_corpus_manifest
from lmscale.corpus.messages import read_turns
from lmscale.errors import ConfigError, DataError

MESSAGES = {"messages_field": "messages"}
GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BROKEN = {
    "holds text, not a list of messages": "a",
    "holds a message that is no object: turn 2 is text": [GOOD[0], "b"],
    "with neither role and content nor from and value: the keys of turn 1 are 'says'": [
        {"says": "a"}
    ],
    "with tool_calls, which is not read: turn 2": [
        GOOD[0],
        {"role": "assistant", "content": "b", "tool_calls": [{"name": "x"}]},
    ],
    "of weight 0, and every answer is learned: turn 2": [GOOD[0], {**GOOD[1], "weight": 0}],
    "is none of system, user, assistant, human, gpt: turn 1 has 'tool'": [
        {"role": "tool", "content": "a"},
        *GOOD,
    ],
    "whose content is no text: that of turn 2 is null": [
        GOOD[0],
        {"role": "assistant", "content": None},
    ],
    "holds a message without text: turn 2": [GOOD[0], {"role": "assistant", "content": " \n"}],
    "has no turn of the assistant": [GOOD[0]],
    "by turns): turn 3 is the system's, and should be the user's": [
        *GOOD,
        {"role": "system", "content": "x"},
    ],
    "by turns): turn 1 is the assistant's, and should be the user's": GOOD[::-1],
    "ends without an answer of the assistant": [*GOOD, GOOD[0]],
}


def write(folder, rows, *, fields=MESSAGES, **corpus):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    tree = labelled_tree(folder, {"chats": fields})
    tree["corpus"] |= {"heldout_fraction": 0.0, **corpus}
    return RunConfig.model_validate(tree)


def documents(folder, split="train"):
    path = folder / f"corpus/chats/{split}/documents-00000.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_kind_of_broken_dialogue_is_told_at_once_with_its_line(tmp_path):
    rows = [{"messages": messages} for messages in BROKEN.values()]
    config = write(tmp_path, rows, max_chars=99)
    lenient = config.corpus.sources["chats"].model_copy(update={"max_bad_records": len(rows)})
    with pytest.raises(DataError) as caught:
        build_corpus(config.corpus)
    assert "5 broken records, and reading stopped there" in str(caught.value)
    write(tmp_path, [*rows, {"messages": GOOD}])
    build_corpus(config.corpus.model_copy(update={"sources": {"chats": lenient}}))
    manifest = load_corpus_manifest(tmp_path / "corpus/chats")
    assert (manifest.dropped, manifest.documents("train")) == ({"broken": len(rows)}, 1)
    lenient = lenient.model_copy(update={"max_bad_records": len(rows) - 1})
    with pytest.raises(DataError) as caught:
        build_corpus(config.corpus.model_copy(update={"sources": {"chats": lenient}}), force=True)
    for number, told in enumerate(BROKEN, start=1):
        assert any(
            f"chats.jsonl:{number}" in problem and told.partition(": ")[0] in problem
            for problem in caught.value.problems
        ), (told, caught.value.problems)


@pytest.mark.parametrize("told", BROKEN)
def test_a_broken_dialogue_says_which_turn_it_is(told):
    with pytest.raises(ValueError) as caught:
        read_turns(BROKEN[told], "messages")
    error = caught.value
    assert f"{error}: {getattr(error, 'detail', '')}".removesuffix(": ").endswith(told)


def test_messages_of_sharegpt_and_of_parquet_are_the_same_dialogues(tmp_path):
    rows = records("dialogues")[:40]
    write(tmp_path, rows)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    theirs = [
        {"messages": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]}
        for row in rows
    ]
    found = []
    for number, kind in enumerate(("openai", "sharegpt", "parquet")):
        folder = tmp_path / kind
        folder.mkdir()
        config = write(folder, theirs if kind == "sharegpt" else rows)
        if kind == "parquet":
            (folder / "chats.jsonl").unlink()
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, folder / "chats.parquet")
        build_corpus(config.corpus)
        found.append([{**each, "id": number} for each in documents(folder)])
        for each in found[-1]:
            each.pop("id")
    assert found[0] == found[1] == found[2]
    first = found[0][0]
    messages = rows[0]["messages"]
    assert first["roles"] == [each["role"] for each in messages]
    assert first["parts"] == [len(each["content"]) for each in messages]
    assert first["text"] == "".join(each["content"] for each in messages)


ALPACA = {"instruction_field": "instruction", "input_field": "input", "output_field": "output"}


def test_an_instruction_with_its_output_is_a_dialogue_of_two_turns(tmp_path):
    rows = [
        {"instruction": "Sum up.", "input": "长文", "output": "短文"},
        {"instruction": "Greet.", "input": "", "output": "Hi."},
        {"instruction": "Part.", "input": None, "output": "Bye."},
    ]
    config = write(tmp_path, rows, fields=ALPACA)
    build_corpus(config.corpus)
    assert [
        (each["text"], each["parts"], each["roles"] == ["user", "assistant"])
        for each in documents(tmp_path)
    ] == [
        ("Sum up.\n\n长文短文", [11, 2], True),
        ("Greet.Hi.", [6, 3], True),
        ("Part.Bye.", [5, 4], True),
    ]
    rows = [rows[0] | {"output": " "}, rows[0] | {"input": 1}, {"instruction": "a", "output": "b"}]
    config = write(tmp_path, rows, fields=ALPACA)
    with pytest.raises(DataError) as caught:
        build_corpus(config.corpus, force=True)
    told = "\n".join(caught.value.problems)
    assert "chats.jsonl:1" in told and "'output' (output_field) holds no text" in told
    assert "'input' (input_field) holds number, not text" in told.replace("a number", "number")
    assert "no key 'input' (input_field)" in told


@pytest.mark.parametrize(
    ("on_overlong", "counted"),
    [
        ("truncate", ({"truncated": 1}, {"overlong": 1})),
        ("drop", ({}, {"overlong": 2})),
        ("split", ({}, {"overlong": 2})),
    ],
)
def test_a_long_dialogue_is_cut_behind_an_answer_or_left_out_and_counted(
    tmp_path, on_overlong, counted
):
    long = [*GOOD, {"role": "user", "content": "c" * 9}, {"role": "assistant", "content": "d"}]
    rows = [{"messages": [{"role": "user", "content": each}, GOOD[1]]} for each in ("e" * 12, "f")]
    rows.insert(0, {"messages": long})
    config = write(tmp_path, rows, max_chars=11, on_overlong=on_overlong)
    build_corpus(config.corpus)
    manifest = load_corpus_manifest(tmp_path / "corpus/chats")
    assert (manifest.cut, manifest.dropped) == counted
    first, *others = documents(tmp_path)
    assert (len(others), first["roles"]) == (on_overlong == "truncate", ["user", "assistant"])
    assert first["text"] == ("ab" if others else "fb")


def test_the_first_question_decides_which_dialogues_are_held_out(tmp_path):
    system = {"role": "system", "content": "be kind"}
    rows = [
        {"messages": [*first, {"role": "user", "content": f"q{number}"}, GOOD[1]]}
        for number in range(60)
        for first in ([], [system])
    ]
    config = write(tmp_path, rows, heldout_fraction=0.5)
    build_corpus(config.corpus)
    sides = [
        {each["text"].removeprefix("be kind") for each in documents(tmp_path, split)}
        for split in ("train", "heldout")
    ]
    assert min(map(len, sides)) > 10 and not sides[0] & sides[1]


def test_a_source_is_of_dialogues_or_of_something_else():
    for fields, told in (
        ({"messages_field": "m", "label_field": "l"}, "is neither a pair nor has it labels"),
        ({**ALPACA, "label_field": "l"}, "instruction_field: a dialogue has no label_field"),
        ({"input_field": "i"}, "instruction_field and output_field belong together"),
        ({"instruction_field": "i"}, "instruction_field and output_field belong together"),
    ):
        tree = labelled_tree(Path("x"), {"chats": fields})
        with pytest.raises(ConfigError, match=told):
            parse_config(json.dumps(tree))
