"""``lmscale evaluate RUN --written``: many texts at once are those that each alone would be."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from forked_ranks import run_on_ranks
from labelled_data import records
from pair_runs import pair_config, train_pair_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from lmscale.cli.evaluate import evaluate
from lmscale.config import RunConfig
from lmscale.config.model import DecoderConfig, EncoderDecoderConfig, RecurrentConfig, Sizes
from lmscale.errors import ConfigError
from lmscale.evaluation.answering import plan_batches, write_answers
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.prompts import Prompt, ask_turn, build_prompt, load_run_template
from lmscale.evaluation.run import load_run
from lmscale.evaluation.sampling import Sampling
from lmscale.evaluation.written import find_last_answer, read_pairs
from lmscale.metrics.written import score_written
from lmscale.model.family import Model, build_model
from lmscale.ranks.mesh import Axis
from lmscale.ranks.ranks import Ranks
from lmscale.stream.dataset import open_dataset
from lmscale.tokenizer.base import Tokenizer
from lmscale.train.initial import draw_weights, fill_weights

CPU = torch.device("cpu")
SIZES = Sizes(vocab_size=512, max_positions=24, sequence_length=24)
SHAPE = {"layers": 1, "width": 32, "heads": 4}
app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(scope="module", params=["pairs", "completion"])
def run(request, labelled, tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("written") / request.param
    config = pair_config(labelled, request.param, folder)
    train_pair_run(config, steps=50)
    return config


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def drawn(settings) -> Model:
    model = build_model(settings, SIZES)
    fill_weights(model, draw_weights(1))
    return model.eval()


def alone(model: Model, tokenizer: Tokenizer, prompt: Prompt, max_tokens: int) -> list[int]:
    generation = Generation(
        model, tokenizer, prompt, Sampling(is_greedy=True), max_tokens=max_tokens
    )
    return [token for token in generation if token not in generation.ends]


@pytest.mark.parametrize(
    ("settings", "sees_whole"),
    [
        (DecoderConfig(**SHAPE, init_std=0.2), False),
        (DecoderConfig(**SHAPE, init_std=0.2, sliding_windows=(3,)), False),
        (DecoderConfig(**SHAPE, init_std=0.2), True),
        (RecurrentConfig(family="recurrent", layers=1, width=32, init_std=0.5), False),
    ],
    ids=["decoder", "sliding", "prefix", "recurrent"],
)
def test_texts_written_side_by_side_are_those_that_each_alone_would_be(
    tokenizer, settings, sees_whole
):
    model = drawn(settings)
    ends = frozenset({77})
    prompts = [
        Prompt(ids=tuple(range(5, 5 + length)), ends=ends, sees_whole=sees_whole)
        for length in (3, 1, 9, 22, 3, 4)
    ]
    made = write_answers(model, tokenizer, prompts, max_tokens=12, batch_tokens=64, data=Axis())
    for prompt, written in zip(prompts, made, strict=True):
        assert list(written.ids) == alone(model, tokenizer, prompt, 12)
        assert written.is_ended or len(written.ids) == min(12, 24 - len(prompt.ids))
    assert len({written.ids for written in made}) > 3


def test_sources_of_other_lengths_beside_it_change_no_text(tokenizer):
    model = drawn(EncoderDecoderConfig(family="encoder_decoder", **SHAPE, init_std=0.3))
    prompts = [
        Prompt(ids=(500,), source=tuple(range(7, 7 + length)), ends=frozenset({501}))
        for length in (2, 11, 24, 5)
    ]
    made = write_answers(model, tokenizer, prompts, max_tokens=10, batch_tokens=2**12, data=Axis())
    assert [list(written.ids) for written in made] == [
        alone(model, tokenizer, prompt, 10) for prompt in prompts
    ]
    assert len({written.ids for written in made}) > 1


def write_on_ranks(ranks: Ranks) -> list[list[int]]:
    model = drawn(DecoderConfig(**SHAPE, init_std=0.2))
    writable = np.arange(512) > 3
    tokenizer: Any = SimpleNamespace(vocab_size=512, eos_id=2, is_writable=lambda: writable)
    prompts = [Prompt(ids=tuple(range(5, 6 + length))) for length in range(5)]
    axis = Axis(rank=ranks.rank, size=ranks.world_size)
    made = write_answers(model, tokenizer, prompts, max_tokens=6, batch_tokens=16, data=axis)
    return [list(written.ids) for written in made]


@pytest.mark.ranks
def test_ranks_that_share_the_texts_all_have_them(tmp_path):
    expected = write_on_ranks(Ranks())
    assert run_on_ranks(write_on_ranks, 2, tmp_path) == [expected, expected]


def test_batches_hold_prompts_of_about_one_length_and_only_so_many_tokens():
    prompts = [Prompt(ids=tuple(range(n))) for n in (1, 9, 2, 8, 3)]
    assert plan_batches(prompts, max_tokens=4, batch_tokens=26) == [[1, 3], [4, 2, 0]]
    whole = [Prompt(ids=tuple(range(n)), sees_whole=True) for n in (2, 3, 2)]
    assert plan_batches(whole, max_tokens=1, batch_tokens=100) == [[1], [0, 2]]
    assert plan_batches(prompts, max_tokens=4, batch_tokens=1) == [[1], [3], [4], [2], [0]]


def test_what_was_written_of_held_out_pairs_is_scored_and_kept(run):
    printed = json.loads(
        call(run.folder, "--written", "--json", "--examples", 2, "--max-tokens", 40)
    )
    found = printed["sets"]["pairs"]
    loaded = load_run(run.folder, step=None, device=CPU)
    dataset = open_dataset(run.evaluation.sets["pairs"], run.stream, shape=run.window)
    pairs = read_pairs(dataset)
    dataset.close()
    known = {each["en"]: each["de"] for each in records("pairs")}
    decode = loaded.tokenizer.decode
    texts = [(decode(pair.first), decode(pair.second)) for pair in pairs]
    assert len(texts) == found["texts"] > 10
    assert all(known[first] == second for first, second in texts)
    written = []
    for first, _ in texts:
        prompt = build_prompt(loaded.config, loaded.tokenizer, first, bos_id=loaded.bos_id)
        written.append(decode(alone(loaded.model, loaded.tokenizer, prompt, 40)))
    score = score_written(written, [second for _, second in texts])
    assert {name: found[name] for name in score.figures} == score.figures
    assert score.rouge_l > 60 and score.exact > 0  # it has learned, and these were held out
    assert found["examples"][1]["written"] in written
    row = json.loads((run.folder / "tasks.jsonl").read_text().splitlines()[-1])
    assert row["figures"]["written/pairs/rouge_l"] == score.rouge_l and row["step"] == 7
    assert row["settings"] == {"max_tokens": 40}
    events = EventAccumulator(str(run.folder / "events/tasks"))
    events.Reload()
    assert events.Scalars("written/pairs/bleu")[-1].value == pytest.approx(score.bleu)
    table = events.Tensors("written/pairs/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert found["examples"][0]["wanted"] in table


def test_of_a_dialogue_the_last_answer_is_asked_for_as_a_chat_would(labelled, tmp_path):
    config = pair_config(labelled, "dialogue", tmp_path / "run")
    train_pair_run(config, steps=60)
    printed = json.loads(
        call(config.folder, "--written", "--json", "--examples", 50, "--max-tokens", 12)
    )
    found = printed["sets"]["dialogues"]
    loaded = load_run(config.folder, step=None, device=CPU)
    tokenizer = loaded.tokenizer
    template = load_run_template(loaded.config, tokenizer)
    known = {}
    for row in records("dialogues"):
        *said, answer = row["messages"]
        prompt = ask_turn(template, said)
        known[tokenizer.decode(list(prompt.ids))] = len(said), prompt, answer["content"]
    assert len(found["examples"]) == found["texts"] > 10
    asked = [known[each["first"]] for each in found["examples"]]
    assert {length for length, _, _ in asked} >= {2, 3, 5}  # some behind earlier answers
    assert [each["wanted"].strip() for each in found["examples"]] == [each[2] for each in asked]
    assert [each["written"] for each in found["examples"]] == [
        tokenizer.decode(alone(loaded.model, tokenizer, prompt, 12)) for _, prompt, _ in asked
    ]
    assert len({each["written"] for each in found["examples"]}) > 2
    assert found["unended"] < found["texts"]  # what ends a turn has ended some
    (config.folder / "tokenizer/chat_template.jinja").write_text("{{ eos_token }}")
    with pytest.raises(ConfigError, match="dialogues: its dialogues were written by another"):
        call(config.folder, "--written")


def test_the_last_answer_is_the_last_run_of_its_tokens():
    assert find_last_answer(np.array([0, 1, 1, 0, 1, 1, 1, 0])) == (4, 7)
    assert find_last_answer(np.array([1, 1])) == (0, 2)


def test_a_table_tells_counts_signatures_and_examples(run):
    lines = call(run.folder, "--written", "--limit", 5, "--examples", 1).splitlines()
    assert lines[0].split() == ["set", "texts", "BLEU", "chrF", "ROUGE-L", "exact", "match"]
    assert lines[1].split()[:2] == ["pairs", "5"]
    text = "\n".join(lines)
    assert "nrefs:1|case:mixed|eff:no|tok:13a" in text
    assert text.count("\n  wanted ") == text.count("\n  written ") == 1


def test_what_does_not_go_together_is_refused(run, labelled, tmp_path):
    for options, said in (
        (("--written", "--tasks", "arc_easy"), "--tasks and --include-path have nothing to say"),
        (("--examples", 2), "--max-tokens and --examples are of texts that are written"),
        (("--written", "--set-name", "no"), "no set 'no'. Known: pairs"),
    ):
        with pytest.raises(ConfigError, match=said):
            call(run.folder, *options)
