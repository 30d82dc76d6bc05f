"""The labelled sets of benchmarks/fine_tuning: no text on two sides; baselines by hand."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "fine_tuning"))

OFFICE = "国家/n 主席/n 江/nr 泽民/nr 发表/v 讲话/n 。/w"
REPORT = "记者/n 兰/nr 红光/nr 摄/v ；/w 天/n 好/a"
PAPER = [[tuple(word.split("/")) for word in line.split()] for line in (OFFICE, REPORT)]


def test_no_text_stands_on_two_sides_and_a_group_is_whole():
    from packaged_sets import SIDES, divide, letters_of, side_of

    words = ["".join(pair) for pair in itertools.product("abcdefgh", "mnopqrst")]
    records = [{"text": f"A {word}!", "of": word} for word in words]
    records += [{"text": f"a, {word}", "of": word[0]} for word in words]
    sides = divide(records, text=lambda r: r["text"], group=lambda r: r["of"])
    texts = [letters_of(r["text"]) for side in SIDES for r in sides[side]]
    assert len(texts) == len(set(texts)) == len(words)
    assert all(sides.values()), "a side without a record proves nothing"
    for side in SIDES:
        assert {side_of(record["of"]) for record in sides[side]} == {side}


def test_a_side_is_a_key_s_own_and_has_its_share():
    from packaged_sets import side_of

    sides = [side_of(str(number)) for number in range(5000)]
    shares = {side: sides.count(side) / 5000 for side in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)
    assert [side_of(key) for key in ("a", "b", "page.html")] == ["train", "train", "train"]


def test_a_question_asks_for_the_name_behind_a_title_and_its_answer_stands_there():
    from newspaper import read_questions

    (question,) = read_questions(PAPER)  # 记者 alone is too short a title
    assert question == {
        "question": "国家主席是谁？",
        "context": "国家主席江泽民发表讲话。",
        "answer": "江泽民",
        "answer_start": 4,
        "paragraph": 0,
    }


def test_sentences_end_with_their_sign_and_long_ones_are_in_no_passage():
    from newspaper import MAX_PASSAGE, cut_passages, cut_sentences

    first, second = cut_sentences(PAPER[1])
    assert first[-1] == ("；", "w") and second == [("天", "n"), ("好", "a")]
    long = [("字" * (MAX_PASSAGE + 1), "n"), ("。", "w")]
    assert list(cut_passages([*PAPER[0], *long, *PAPER[1]])) == [PAPER[0], PAPER[1]]


def test_a_word_has_its_most_frequent_tag_and_an_unknown_one_that_of_its_last_character():
    from classical import frequent_tags

    train = [{"words": ["大学", "学", "上"], "tags": ["n", "v", "f"]}]
    train += [{"words": ["上", "上"], "tags": ["v", "v"]}]
    test = [{"words": ["上", "小学", "x"], "tags": ["", "", ""]}]
    assert frequent_tags(train, test) == ["v", "v", "v"]


def test_a_dictionary_finds_which_words_go_together():
    from translated import translate_words

    train = [
        {"en": "red house", "zh": "红色房子"},
        {"en": "red table", "zh": "红色桌子"},
        {"en": "old house", "zh": "老旧房子"},
    ]
    assert translate_words(train, ["old table", "new house"]) == ["老旧桌子", "new房子"]


def test_a_gap_is_asked_for_where_its_word_stands_in_the_description():
    from descriptions import ask_for_words, read_descriptions

    rest = "more words that nobody asks for, " * 3
    said = f"A viewer of maps that draws rivers, and {rest}"
    text = f"Package: m\nDescription-en: small rivers of Europe\n {said}\n .\n No"
    others = (("", f"{number} {rest}") for number in range(99))
    (question,) = ask_for_words([*read_descriptions(text), *others])
    assert question["question"] == "small ___ of Europe" and question["answer"] == "rivers"
    assert question["context"][question["answer_start"] :].startswith("rivers, and more")


def test_the_regression_finds_the_word_beside_what_the_question_has_beside_its_gap():
    from found import Task, regression, word_candidates

    words = ["".join(pair) for pair in itertools.product("abcdefgh", ("lling", "mming", "nning"))]
    sides = {
        side: [
            {
                "question": "plain ___ tools",
                "context": f"{b} {a} or plain {a} tools {c}",
                "answer": a,
            }
            for a, b, c in zip(words[n:], words[n + 1 :], words[n + 2 :], strict=False)
        ]
        for side, n in (("train", 0), ("validation", 1), ("test", 2))
    }
    found = regression(sides, Task(word_candidates, "words"))
    assert found == [record["answer"] for record in sides["test"]]


def test_letters_are_aligned_with_what_they_say_and_a_regression_says_it_of_other_words():
    from letters import LetterRegression, align

    sounds = {"c": "k", "h": "", "a": "a", "o": "o", "x": "k s", "t": "t"}
    words = ["".join(word) for word in itertools.product("cxt", "ao", "cxht", "ao")]
    pairs = [(list(word), " ".join(sounds[c] for c in word).split()) for word in words]
    assert align(pairs)[0] == ["k", "a", "k", "a"]
    assert align(pairs)[words.index("xaha")] == ["k s", "a", "", "a"]
    spelled = LetterRegression(pairs, 10.0).spell([list("choxa"), list("tat")])
    assert spelled == ["k o k s a", "t a t"]


def test_entities_are_counted_as_lmscale_counts_them():
    from classical import entity_f1

    records = [{"tags": ["B-a", "I-a", "O"]}, {"tags": ["B-b"]}]
    names = ["B-a", "B-b", "I-a", "O"]
    assert entity_f1(["B-a", "I-a", "O", "B-b"], records, names) == 1
    assert entity_f1(["B-a", "O", "O", "B-b"], records, names) == 0.5


def test_words_of_a_lexicon_are_spelled_once_and_those_with_other_signs_are_left_out():
    from pronunciations import spell

    rows = [("été", "e t e"), ("été", "e t"), ("l'eau", "l o"), ("Paris", "p a ʁ i")]
    assert list(spell(rows)) == [{"spelling": "é t é", "phonemes": "e t e"}]


def test_every_row_has_a_short_yaml_that_loads_and_a_base():
    from classical import SETS
    from rows import BASES, FIRST, HERE, ROWS

    from lmscale.config import load_config
    from lmscale.config.finetune import load_finetune

    assert ROWS.keys() == BASES.keys() == SETS.keys()
    for row, ways in ROWS.items():
        for settings in ways.values():
            config = load_finetune(HERE / f"{row}.yaml", settings)
            assert config.name == row and config.base == f"runs/{BASES[row]}"
            assert {*config.data.train, *config.data.heldout, *config.data.test}
    for base in {*BASES.values()} - {"minilm"}:
        steps = load_config(HERE / f"{base}.yaml", FIRST.get(base, ())[1::2]).train.steps
        assert steps <= load_config(HERE / f"{base}.yaml").train.steps


def test_the_figures_of_an_evaluation_are_found_and_costs_are_those_of_a_quiet_step(tmp_path):
    from rows import flat, read_costs

    assert flat({"test": {"accuracy": 0.5, "loss": 1}}) == {"accuracy": 0.5, "loss": 1}
    assert flat({"step": 9, "sets": {"test": {"bleu": 80.5}}}) == {"bleu": 80.5}
    lines = [{"step": n, "speed/step_seconds": n, "memory/peak_bytes": n * 1e9} for n in (1, 2, 9)]
    place = tmp_path / "metrics.jsonl"
    place.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 9}]), "utf-8")
    assert read_costs(place) == {"step_seconds": 1, "peak_GB": 9, "steps": 9}
