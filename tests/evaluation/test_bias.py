"""``lmscale probe bias``: the same tokens are scored of both groups, and counted by sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from handmade_runs import make_run
from tiny_run import tiny_config
from two_ranks import figures_of, run_on_two
from typer.testing import CliRunner

from lmscale.cli.probe import app
from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.bias import (
    OWN,
    Category,
    Scored,
    count_shared,
    fill,
    judge_leanings,
    load_categories,
)
from lmscale.evaluation.likelihoods import score_filled
from lmscale.evaluation.run import load_run
from lmscale.ranks.mesh import Axis
from lmscale.tokenizer.codec import load_tokenizer

ENCODER = {"family": "encoder", "layers": 1, "width": 32, "heads": 4, "dropout": 0.0}
CATEGORY = Category(
    language="en",
    name="gender",
    pairs=(("The woman", "The man"), ("She", "He")),
    sentences=(("{} works here.", 0), ("Here {} works.", 1)),
)


@pytest.fixture(scope="module", params=["causal", "masked"])
def run(request, tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bias") / "run"
    overrides = {"stream.sequence_length": 64}
    if request.param == "masked":
        overrides |= {"objective.name": "masked", "model": ENCODER}
    config = tiny_config(tiny_data, folder, overrides)
    make_run(config, load_tokenizer(config.tokenizer.folder))
    return folder


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@torch.no_grad()
def log_p_of(loaded, ids: list[int], place: int) -> float:
    """Of the token at a place, by a pass of its own."""
    model, label = loaded.model, ids[place]
    if loaded.config.objective.name == "masked":
        given, at = [*ids[:place], loaded.config.objective_ids["mask"], *ids[place + 1 :]], place
    else:
        given, at = ids[:place], place - 1
    given_ids = torch.tensor([given])
    begins = torch.zeros_like(given_ids, dtype=torch.bool)
    begins[:, 0] = True
    hidden = model(given_ids, model.lay_out(begins, mask_documents=False))
    logits = model.head(hidden)[0, at, : loaded.config.num_ids]
    return float(logits.log_softmax(-1)[label])


def test_a_score_is_that_of_the_shared_tokens_one_by_one(run):
    loaded = load_run(run, step=None, device=torch.device("cpu"))
    is_masked = loaded.config.objective.name == "masked"
    filled = fill([CATEGORY])
    assert len(filled) == 4 and filled[3].said == "Here He works."
    scored = score_filled(loaded, filled, data=Axis())
    tokenizer = loaded.tokenizer
    assert loaded.bos_id is None  # as nothing was recorded: eos stands in front, or nothing
    for each, score in zip(filled, scored, strict=True):
        end = [tokenizer.eos_id] * is_masked
        begin = [] if is_masked else [tokenizer.eos_id]
        both = [[*begin, *tokenizer.encode(t).tolist(), *end] for t in (each.said, each.other)]
        before, behind = count_shared(*both)
        for ids, given in zip(both, (score.said, score.other), strict=True):
            places = [*range(before)] if is_masked else []
            places += range(len(ids) - behind, len(ids) - is_masked)
            assert score.tokens == len(places) > 1
            assert given == pytest.approx(sum(log_p_of(loaded, ids, p) for p in places), abs=1e-4)


def test_the_command_prints_a_line_for_each_category_and_keeps_the_figures(run):
    is_masked = "name: masked" in (run / "config.yaml").read_text()
    options = ("--language", "en") if is_masked else ()  # else a row for every token, of both
    printed = json.loads(call("bias", run, "--json", *options))
    assert [(row["language"], row["category"]) for row in printed["rows"]] == [
        (language, category)
        for language in ("en", "zh")[: 2 - is_masked]
        for category in ("gender", "age", "origin", "wealth")
    ]
    assert all(0 < row["leaning"] + row["even"] <= row["sentences"] for row in printed["rows"])
    row = json.loads((run / "tasks.jsonl").read_text().splitlines()[-1])
    assert row["figures"]["bias/en/age/gap"] == printed["rows"][1]["gap"]
    lines = call("bias", run, "--language", "en").splitlines()
    names = [["en", category] for category in ("gender", "age", "origin", "wealth")]
    assert [line.split()[:2] for line in lines[1:5]] == names
    assert any("no proof of fairness" in line for line in lines)


@pytest.mark.ranks
def test_two_ranks_score_as_one_does(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("en: {work: {pairs: [[He, She], [A man, A woman]], first: ['{} works here.']}}")
    words = ("bias", str(run), "--templates", str(file), "--json")
    (alone,) = json.loads(call(*words))["rows"]
    first, second = run_on_two("probe", *words)
    (together,) = figures_of(first)["rows"]
    assert together == {n: pytest.approx(v) if n == "gap" else v for n, v in alone.items()}
    assert alone["gap"] != 0 and (second.code, second.output) == (0, "")


def test_groups_that_change_places_change_the_sign_alone(run):
    loaded = load_run(run, step=None, device=torch.device("cpu"))
    swapped = tuple((second, first) for first, second in CATEGORY.pairs)
    other = Category(language="en", name="b", pairs=swapped, sentences=CATEGORY.sentences)
    categories = [CATEGORY, other]
    filled = fill(categories)
    scored = score_filled(loaded, filled, data=Axis())
    ours, theirs = judge_leanings(categories, filled, scored, seed=0)
    assert ours.gap == pytest.approx(-theirs.gap, abs=1e-6) and ours.gap != 0
    assert ours.leaning + theirs.leaning == ours.decided == 2


def test_sentences_are_counted_and_not_their_fillings():
    filled = fill([CATEGORY])
    scored = [Scored(-1.0, -3.0, 2), Scored(-4.0, -3.0, 2), Scored(-2.0, -2.0, 2), None]
    (found,) = judge_leanings([CATEGORY], filled, scored, seed=0)
    assert (found.sentences, found.leaning, found.even, found.skipped) == (2, 1, 1, 1)
    assert found.gap == pytest.approx(1 / 3) and found.p_value == 1.0
    assert found.nats == pytest.approx(15 / 12)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([1, 2, 3], [4, 2, 3], (0, 2)), ([1, 2], [1, 2], (2, 0)), ([1, 5, 1], [1, 1], (1, 1)),
     ([], [1], (0, 0)), ([1, 2, 9], [1, 3, 4, 9], (1, 1))],
)  # fmt: skip
def test_shared_ids_are_those_of_both_ends(first, second, shared):
    assert count_shared(first, second) == shared == count_shared(second, first)


def test_lmscales_own_sentences_differ_in_the_slot_alone():
    categories = load_categories(OWN)
    assert {each.language for each in categories} == {"en", "zh"}
    for each in categories:
        assert len({text for text, _ in each.sentences}) == len(each.sentences) >= 12
        sides = [side for _, side in each.sentences]
        assert sides.count(0) == sides.count(1)
        assert len(each.pairs) >= 4


def test_what_is_wrong_with_a_file_is_told_at_once(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "de:\n"
        "  a: {pairs: [[x]], first: ['{} y']}\n"
        "  b: {pairs: [[x, y]], first: ['no slot', '{} {}'], third: []}\n"
        "  c: {pairs: [[x, y]]}\n"
    )
    with pytest.raises(DataError) as caught:
        call("bias", run, "--templates", file, "--language", "fr")
    said = "\n".join(caught.value.problems)
    for part in (
        "de.a.pairs is no list of two texts each",
        "de.b.first: 'no slot' is no text with one {}",
        "de.b: third is none of pairs, first, second",
        "de.c has no sentences: give first, second or both",
        "--language fr: the file has de",
    ):
        assert part in said
    for text, error, match in (
        ("- x", ConfigError, "expected a mapping"),
        ("en: [x]", DataError, "it is no mapping of languages to categories"),
        ("{}", DataError, "it has no sentences"),
        ("en: {a: [", ConfigError, "not valid YAML"),
        ("en: \x1b", ConfigError, "not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=match):
            call("bias", run, "--templates", file)


def test_a_run_that_gives_sentences_no_probability_is_refused(labelled, tmp_path):
    from pair_runs import pair_config

    config = pair_config(labelled, "pairs", tmp_path / "run")
    make_run(config, load_tokenizer(config.tokenizer.folder))
    with pytest.raises(ConfigError, match="'pairs' gives sentences no probability"):
        call("bias", config.folder)
