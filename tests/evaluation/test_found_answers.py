"""A run finds answers in contexts of any length, and is scored as the data sets' scripts do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_data import records
from pair_runs import pair_config, train_pair_run
from typer.testing import CliRunner

from lmscale.cli.app import app
from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.found_answers import find_answers, join_windows
from lmscale.evaluation.questions import (
    AskedQuestion,
    ReadWindow,
    check_answering,
    plan_reading,
    plan_windows,
    read_questions,
)
from lmscale.evaluation.run import load_run
from lmscale.stream.ledger import save_record
from lmscale.stream.stream import open_stream


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers") / "run"
    config = pair_config(labelled, "answers", folder)
    train_pair_run(config, steps=100)
    with open_stream(config.stream, seed=1, shape=config.window) as stream:
        save_record(folder, stream, 0)  # by which its documents begin with bos
    return folder


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(run, step=None, device=torch.device("cpu"))


def ask(*words: str, **given) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["answer", *words], catch_exceptions=True, **given)
    error = getattr(result.exception, "problems", "")
    return result.exit_code, result.output + "\n".join(error)


def test_answers_of_a_run_that_has_learned_them_are_right_also_beside_others(loaded):
    asked = [
        AskedQuestion(question=row["question"], context=row["context"])
        for row in records("answers")
    ]
    wanted = [next(iter(row["answers"]["text"]), "") for row in records("answers")]
    found = find_answers(loaded, asked)
    right = sum(each.text == answer for each, answer in zip(found, wanted, strict=True))
    assert right > 0.9 * len(asked)
    assert all(row.context[f.begin : f.end] == f.text for row, f in zip(asked, found, strict=True))
    alone = [find_answers(loaded, [each])[0] for each in asked[:6]]
    for one, other in zip(alone, found, strict=False):
        assert (one.text, one.begin) == (other.text, other.begin)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert 0 < one.probability <= 1 + 1e-6


def test_a_context_longer_than_a_window_is_read_in_several(loaded):
    filler = "it is so. " * 20
    asked = AskedQuestion(question="what is it?", context=f"{filler}a red big cat.")
    _, windows = plan_reading([asked], loaded.config, loaded.tokenizer, loaded.bos_id)
    assert len(windows) > 2 and {len(window.ids) for window in windows} == {48}
    found = find_answers(loaded, [asked])[0]
    assert asked.context[found.begin : found.end] == found.text
    assert found.end - found.begin < 60


@given(st.integers(1, 300), st.integers(2, 60), st.integers(0, 80))
def test_windows_cover_a_context_and_two_in_a_row_share_tokens(tokens, room, overlap):
    windows = list(plan_windows(tokens, room, overlap))
    assert windows[0][0] == 0 and sum(windows[-1]) == tokens
    assert all(0 < length <= room for _, length in windows)
    assert len(windows) == 1 or all(length == room for _, length in windows)
    for (begin, length), (following, _) in zip(windows, windows[1:], strict=False):
        assert begin < following <= begin + length - min(overlap, room // 2)


def test_of_a_token_in_two_windows_that_counts_which_has_most_around_it():
    def window(begin: int, value: float) -> tuple[ReadWindow, torch.Tensor]:
        read = ReadWindow(number=0, begin=begin, length=4, ids=(), num_before=0)
        return read, torch.tensor([[value, *[value] * 4]] * 2)

    whole = join_windows([window(0, 1.0), window(2, 2.0), window(4, 0.5)], 8)
    assert whole[0].tolist() == [0.5, 1, 1, 1, 2, 2, 0.5, 0.5, 0.5]
    assert torch.equal(whole[0], whole[1])


def test_a_question_of_a_terminal_is_answered_with_its_probability(run, tmp_path):
    text = tmp_path / "context.txt"
    text.write_text("a new small bird.")
    code, said = ask(str(run), "--question", "what is it?", "--context", str(text))
    assert (
        code == 0 and "bird" in said and "probability 0." in said and "characters 12 to 16" in said
    )
    code, said = ask(
        *(str(run), "--question", "where is it?", "--context", "-", "--json"), input="an old tree."
    )
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert code == 0 and found["text"] == "" and (found["begin"], found["end"]) == (0, 0)


def test_a_file_of_questions_is_scored_and_its_errors_are_listed(run, tmp_path):
    rows = [
        {"question": "what is it?", "context": "a red dog.", "answers": ["dog", "red dog"]},
        {"question": "how is it?", "context": "a big fish.", "answers": {"text": ["big"]}},
        {"question": "where is it?", "context": "a new book.", "answers": []},
        {"question": "what is it?", "context": "an old house.", "answers": "an old"},
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = ask(str(run), "--questions", str(path))
    assert code == 0, said
    assert "4 questions, 1 of them without an answer" in said
    assert "exact match  75.0%" in said
    assert "1 wrong answer, the worst of them:" in said
    assert f"{path}:4: what is it?" in " ".join(said.split()) and "wanted an old" in said
    code, said = ask(str(run), "--questions", str(path), "--json")
    tree = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert tree["questions"] == 4 and tree["words"]["exact_match"] == 0.75


def test_what_cannot_be_asked_is_told_at_once(run, loaded, labelled, tmp_path):
    config = loaded.config
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"question": "q", "context": "c"}\n[]\n{"question": "q", "context": "c", "answers": "x"}\n'
        '{"question": " ", "context": "c", "answers": []}\nno\n\n'
        '{"question": "q", "context": "\\ud800", "answers": []}\n'
    )
    with pytest.raises(DataError) as caught:
        read_questions(path, config)
    for told in (
        "bad.jsonl:1: no key 'answers'",
        "bad.jsonl:2: expected a JSON object",
        "bad.jsonl:3: the answer 'x' ('answers', answer_field) does not stand in 'context'",
        "bad.jsonl:4: 'question' holds text, without a word",
        "bad.jsonl:5: not JSON",
        "bad.jsonl:7: 'context' holds a lone surrogate",
    ):
        assert told in str(caught.value), str(caught.value)
    long = AskedQuestion(question="what is it " * 30, context="a cat. " * 50)
    with pytest.raises(DataError, match="tokens, which leave 0 of the .* Ask a shorter one"):
        plan_reading([long], config, loaded.tokenizer, loaded.bos_id)
    with pytest.raises(ConfigError, match="this run finds no answers in a context"):
        check_answering(pair_config(labelled, "completion", tmp_path))
    for words in (("--question", "q"), ("--questions", str(path), "--question", "q"), ()):
        assert "Give --question and --context, or --questions" in ask(str(run), *words)[1]
    assert (
        "there is no such file" in ask(str(run), "--question", "q", "--context", str(path) + "x")[1]
    )
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        read_questions(path, config)
