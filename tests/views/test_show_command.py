"""``lmscale show`` on run folders: tables, pictures, and what is wrong told before torch loads."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from handmade_runs import make_run
from labelled_data import labelled_recipe
from recipes import RECIPES
from tiny_run import tiny_config
from typer.testing import CliRunner

from lmscale.cli import show
from lmscale.cli.show import app
from lmscale.errors import ConfigError
from lmscale.evaluation.prompts import build_prompt, check_prompt
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.views.attention_picture import Grid, render_html, render_svg
from lmscale.views.looks import Look, find_word, plan_grids

TEXT = "The lambda is a lambda <b>"


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A decoder's run, one of masked, one that reads and writes."""
    root = tmp_path_factory.mktemp("shown")
    for name in ("llama", "masked", "t5"):
        config = tiny_config(tiny_data, root / name, RECIPES[name] | {"stream.sequence_length": 64})
        make_run(config, load_tokenizer(tiny_data / "tokenizer"), ranks=1)
    return root


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_word_s_table_has_its_words_and_the_picture_its_heads(runs, tmp_path):
    picture = tmp_path / "look.svg"
    said = call(
        "attention", runs / "llama", "--text", TEXT, "--token", "LAMBDA", "--layer", 1,
        "--out", picture,
    )  # fmt: skip
    assert "what #" in said and "also at #" in said and "layer 1 head" in said
    root = ElementTree.fromstring(picture.read_text())
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"head 0", "head 3", "mean", "<b", "lambda"} <= set(words)
    said = call("attention", runs / "llama", "--text", "你好", "--token", "好")
    assert "#1 好 looks at" in said and "#0 你" in said  # of three tokens each, one for a byte
    call("attention", runs / "llama", "--text", TEXT, "--out", picture)  # its own is replaced
    picture.write_text("mine")
    with pytest.raises(ConfigError, match="lmscale did not write it"):
        call("attention", runs / "llama", "--text", TEXT, "--out", picture)


def test_a_model_that_writes_is_shown_by_what_it_looks_at_in_the_source(runs, tmp_path):
    page = tmp_path / "look.html"
    tree = json.loads(call("attention", runs / "t5", "--text", TEXT, "--json", "--out", page))
    assert tree["part"] == "cross" and tree["looking"][0] == "[start]" and len(tree["looking"]) > 2
    np.testing.assert_allclose(np.sum(tree["shares"], -1), 1, atol=1e-4)
    assert page.read_text().count("<svg") == len(tree["layers"]) == 1
    read = ("attention", runs / "t5", "--text", TEXT, "--part", "read", "--token", "is")
    assert "[end]" in call(*read)


def test_a_page_of_a_word_has_its_layers_and_the_heads_of_each(runs, tmp_path):
    page = tmp_path / "look.html"
    call("attention", runs / "llama", "--text", TEXT, "--token", "is", "--out", page)
    assert page.read_text().count("<svg") == 3
    assert page.read_text().count("head 3") == 2


def test_likely_tokens_and_the_cut_of_a_text_are_shown(runs):
    said = call("next", runs / "llama", "--text", "The lambda", "--top", 3)
    assert said.count("%") == 3 and "nats" in said
    rows = json.loads(call("next", runs / "masked", "--text", "a [MASK] b [MASK]", "--json"))
    assert [len(row["tokens"]) for row in rows] == [10, 10]
    assert "mask behind 'a '" in call("next", runs / "masked", "--text", "a [MASK] b")
    assert "'[start]'" in call("tokens", runs / "t5", "--text", "Hello\x1b[2J")
    assert "behind 'The 你'" in call("next", runs / "llama", "--text", "The 你", "--top", 1)
    tree = json.loads(call("tokens", runs / "llama", "--text", "Hello 你好", "--json"))
    assert len(tree["text"]["ids"]) == len(tree["text"]["tokens"])


def test_what_cannot_be_shown_is_told_in_a_line(runs, tmp_path):
    def refuse(match: str, *arguments: object) -> None:
        with pytest.raises(ConfigError, match=match):
            call(*arguments)

    llama, attention = runs / "llama", ("attention", runs / "llama", "--text", TEXT)
    words = r"The text has no word 'cat' to look from \(--token\)\. There are: #0 The #1 lambda"
    with pytest.MonkeyPatch.context() as patched:  # a word is looked for before a model is loaded
        patched.setattr(show, "_load", None)
        refuse(words, *attention, "--token", "cat")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lmscale.views.attention.MOST_BYTES", 1000)
        refuse("all layers and heads take more than 0 GiB for 1[0-9] tokens. Shorten", *attention)
    refuse("--layer 7: the model has the layers 0 to 1", *attention, "--layer", 7)
    refuse("--part cross: the run's model reads and writes one", *attention, "--part", "cross")
    refuse("--part x: give one of own, read, cross", *attention, "--part", "x")
    refuse("ends in .svg or .html", *attention, "--out", tmp_path / "x.png")
    refuse("there is no folder", *attention, "--out", tmp_path / "none" / "x.svg")
    refuse("in the run", *attention, "--out", llama / "x.svg")
    refuse("fills masks: write one", "next", runs / "masked", "--text", "a")


def test_a_decoder_that_has_learned_classes_is_asked_for_no_token(labelled, tiny_data, tmp_path):
    model = {"layers": 1, "width": 32, "heads": 4, "text_classes": 2}
    recipe = labelled_recipe("classes", labelled) | {"model": model}
    config = tiny_config(tiny_data, tmp_path / "run", recipe)
    tokenizer = load_tokenizer(config.tokenizer.folder)
    make_run(config, tokenizer, ranks=1)
    said = "'classes', and its model predicts no token"
    with pytest.raises(ConfigError, match=said):
        call("next", config.folder, "--text", "a cat")
    with pytest.raises(ConfigError, match=said):  # of generate and chat
        check_prompt(config, build_prompt(config, tokenizer, "a cat"), 1)
    assert "cat" in call("attention", config.folder, "--text", "a cat", "--token", "cat")


def test_words_of_any_script_and_any_characters_make_a_picture_that_parses():
    words = ("你好", "a" * 80, "<&\"'>", "\x1b[31m", "\ufffe", "\ud800", "e\u0301")
    shares = np.full((len(words), len(words)), 1 / len(words), dtype=np.float32)
    grid = Grid(title="“\x07”", rows=words, columns=words, shares=shares)
    ElementTree.fromstring(render_svg([grid, grid]))
    assert "\x1b" not in render_html([grid], title="\x1b")


def test_a_word_is_found_by_its_place_and_a_text_too_long_for_a_picture_is_told():
    assert find_word(["a", "b", "a"], "#2") == [2] and find_word(["a", "b", "A"], "a") == [0, 2]
    look = Look(
        part="own",
        queries=("w",) * 401,
        keys=("w",) * 401,
        shares=np.zeros((1, 1, 401, 401), dtype=np.float32),
        layers=(0,),
    )
    with pytest.raises(ConfigError, match="401 words: a picture holds 400"):
        list(plan_grids(look, None, model="m"))
