"""``lmscale probe privacy``: what counts as repeated stands in a training document."""

from __future__ import annotations

import json

import numpy as np
import pytest
from handmade_runs import STEP, make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_config
from two_ranks import figures_of, run_on_two
from typer.testing import CliRunner

from lmscale.cli.probe import app
from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.beginnings import Beginning, Lengths, draw_held_out, draw_read, open_read
from lmscale.evaluation.held_out import open_evaluation_sets
from lmscale.evaluation.privacy import HELD_OUT, READ, TEXT, judge, search_shards
from lmscale.ranks.mesh import Axis
from lmscale.stream.dataset import Dataset
from lmscale.stream.ledger import LedgerRow, open_ledger
from lmscale.stream.stream import open_stream
from lmscale.tokenizer.codec import load_tokenizer

LENGTHS = Lengths(16, 12)
OPTIONS = ("--prompt-tokens", 16, "--length", 12, "--length", 4, "--texts", 20)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> RunConfig:
    """A run of drawn weights that has read 84 windows."""
    folder = tmp_path_factory.mktemp("privacy") / "run"
    sets = {name: f"{tiny_data}/shards/{name}/heldout" for name in "ab"}
    config = tiny_config(tiny_data, folder, {"evaluation.sets": sets, "stream.sequence_length": 64})
    make_run(config, load_tokenizer(config.tokenizer.folder))
    with open_stream(config.stream, seed=1) as stream:
        with open_ledger(folder, next_step=0, stream=stream, n=0) as ledger:
            for step in range(STEP):
                row = LedgerRow(step=step, first_n=12 * step, samples=12, tokens=0, digest=0)
                ledger.append(row)
    return config


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def documents(dataset: Dataset) -> list[list[int]]:
    found = []
    for number in range(len(dataset.manifest.shards)):
        with dataset.mapped(number) as shard:
            for block in range(shard.num_blocks):
                tokens, docs = shard.tokens(block), shard.docs(block)
                found += [tokens[a:b].tolist() for a, b in zip(docs[:-1], docs[1:], strict=True)]
    return found


def test_what_was_read_is_found_and_held_out_text_as_a_plain_search_finds_it(run):
    stream, samples = open_read(run, run.folder, step=STEP)
    sets = open_evaluation_sets(run, load_tokenizer(run.tokenizer.folder).fingerprint)
    with stream:
        read = draw_read(stream, samples, 30, LENGTHS, seed=0)
        assert samples == 84 and len(read) == 30
        held_out = draw_held_out(sets.values(), 30, LENGTHS, seed=0)
        texts = [each.rest for each in (*read, *held_out)]
        datasets = list(stream.datasets.values())
        met, shards = search_shards(texts, (4, 12), datasets, data=Axis(), max_shards=None)
        everything = [document for dataset in datasets for document in documents(dataset)]
        some, (few, all_of_them) = search_shards(texts, (4,), datasets, data=Axis(), max_shards=1)
    assert all(found.all() for found in met[12][:30])
    joined = ["".join(f"{token}," for token in document) for document in everything]
    for text, found in zip(texts, met[4], strict=True):
        spans = ["".join(f"{t}," for t in text[n : n + 4]) for n in range(len(text) - 3)]
        stands = [any(f",{s}" in f",{document}" for document in joined) for s in spans]
        assert found.tolist() == stands
    assert 0 < sum(int(found.sum()) for found in met[4][30:]) < 9 * len(held_out)
    assert (few, all_of_them) == (1, shards[1]) and shards[0] == shards[1] > 1
    assert sum(f.sum() for f in some[4]) < sum(f.sum() for f in met[4])
    for dataset in sets.values():
        dataset.close()


def test_beginnings_are_of_documents_that_were_read_and_the_same_by_seed(run):
    stream, _ = open_read(run, run.folder, step=1)
    with stream:
        few = draw_read(stream, 12, 50, LENGTHS, seed=3)
        assert few == draw_read(stream, 12, 50, LENGTHS, seed=3)
        tokens = stream.read_rows(0, 12).tokens.tolist()
    assert 1 < len(few) <= 12
    for prompt, rest in few:
        whole = [*prompt, *rest]
        assert (len(prompt), len(rest)) == LENGTHS
        assert any(
            row[place : place + 28] == whole for row in tokens for place in range(len(row) - 27)
        )


def test_the_command_tells_both_kinds_of_beginnings_and_keeps_its_figures(run):
    printed = json.loads(call("privacy", run.folder, *OPTIONS, "--json"))
    assert printed["lengths"] == [4, 12] and printed["step"] == STEP
    of = printed["texts"]
    assert of[READ]["texts"] == 20 and set(of) == {READ, HELD_OUT, TEXT}
    assert of[READ]["continued"]["12"]["hits"] == 0  # weights as they were drawn
    assert of[TEXT]["verbatim"]["4"]["hits"] > of[TEXT]["verbatim"]["12"]["hits"]
    row = json.loads((run.folder / "tasks.jsonl").read_text().splitlines()[-1])
    share = of[TEXT]["verbatim"]["4"]["hits"] / of[TEXT]["verbatim"]["4"]["count"]
    assert row["figures"]["privacy/heldout_text/verbatim_4"] == share
    assert row["settings"] == {"prompt_tokens": 16, "texts": 20, "seed": 0}
    text = call("privacy", run.folder, *OPTIONS, "--max-shards", 1)
    assert "searched: 1 of " in text and "names and addresses are not looked for" in text
    events = EventAccumulator(str(run.folder / "events/tasks"))
    events.Reload()
    assert "privacy/text_summary" in events.Tags()["tensors"]


@pytest.mark.ranks
def test_two_ranks_find_what_one_finds_and_the_first_says_so(run):
    alone = json.loads(call("privacy", run.folder, *OPTIONS, "--json"))
    words = [str(each) for each in ("privacy", run.folder, *OPTIONS, "--json")]
    first, second = run_on_two("probe", *words)
    assert figures_of(first) == alone and alone["shards"]["all"] > 1
    assert (second.code, second.output) == (0, "")


def test_personal_data_is_counted_masked_and_set_against_what_was_copied(run):
    tokenizer = load_tokenizer(run.tokenizer.folder)
    text = "ask li_wei@qq.com or 415-867-5309 and li_wei@qq.com"
    ids = tokenizer.encode(text).tolist()
    end = len(tokenizer.encode("ask li_wei@qq.com").tolist()) + 1
    met = {2: [np.arange(len(ids) - 1) < end]}
    found = judge(
        {TEXT: [Beginning([1], ids)]}, {TEXT: [ids]}, met, tokenizer, shards=(1, 1), prompt_tokens=1
    )
    mail, phone = found.personal[TEXT]["e-mail"], found.personal[TEXT]["phone"]
    assert (mail.values, mail.different, mail.copied) == (2, 1, 1)
    assert (phone.values, phone.copied, phone.shown) == (1, 0, ("4**-***-****",))
    assert mail.shown == ("l*_***@**.***",)
    broken = [*tokenizer.encode("你").tolist()[:1], *ids]  # half of a character
    assert len(tokenizer.decode_bytes(broken[:1])) < 3
    met = {2: [np.append([False], met[2][0])]}
    again = judge(
        {TEXT: [Beginning([1], broken)]}, {TEXT: [broken]}, met, tokenizer, shards=(1, 1),
        prompt_tokens=1,
    )  # fmt: skip
    assert again.personal == found.personal


def test_a_run_that_cannot_be_probed_so_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="make 100 tokens, but the run's windows have 64"):
        call("privacy", run.folder)
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="has read nothing of its own"):
        call("privacy", tmp_path, *OPTIONS)
