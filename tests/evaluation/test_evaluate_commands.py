"""``lmscale evaluate`` and ``lmscale generate`` on real shards and a real checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from plain_save import save_checkpoint
from typer.testing import CliRunner

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.evaluate import evaluate
from lmscale.cli.generate import generate
from lmscale.config import RunConfig, dump_config, plan_batches
from lmscale.config.supervised import CompletionConfig
from lmscale.corpus.documents import read_documents
from lmscale.engine.build import build_engine
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.perplexity import evaluate_set, plan_evaluation
from lmscale.evaluation.run import load_run
from lmscale.evaluation.sampling import Sampling
from lmscale.files.reading import seal
from lmscale.model.family import build_model
from lmscale.model.initialize import declared_parameters
from lmscale.objective.causal import CausalPreparation
from lmscale.objective.objective import build_preparation, build_scoring
from lmscale.ranks.mesh import Axis, Mesh
from lmscale.ranks.ranks import Ranks, open_process_group
from lmscale.runs.run_folder import load_run_config
from lmscale.shards.build import build_shards
from lmscale.shards.manifest import load_manifest, save_manifest
from lmscale.stream.dataset import open_dataset
from lmscale.stream.ledger import LedgerRow, open_ledger
from lmscale.stream.stream import open_stream
from lmscale.tokenizer.codec import KEPT_FOLDER, load_tokenizer, save_tokenizer
from lmscale.train.initial import draw_weights, fill_weights

CPU = torch.device("cpu")
app = typer.Typer()
app.command()(evaluate)
app.command()(generate)


@pytest.fixture(scope="module")
def run(config: RunConfig, tokenizer) -> RunConfig:
    """A run folder with its configuration and a checkpoint of step 3, written by a real engine."""
    build_shards(config, processes=1)
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    model = build_model(config.model, config.sizes)
    fill_weights(model, draw_weights(config.run.seed))
    declared = declared_parameters(model)
    stage_0 = config.engine.model_copy(update={"zero_stage": 0})
    with open_process_group(Ranks(), CPU):
        engine = build_engine(
            build_scoring(model, config),
            declared,
            stage_0,
            plan=plan_batches(global_windows=4, micro_windows=4, data_ranks=1),
            mesh=Mesh(),
            device=CPU,
        )
        save_checkpoint(
            LocalPlace(config.folder / "checkpoints"),
            engine,
            step=3,
            identity={},
            ranks=Ranks(),
        )
    return config


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_loaded_weights_are_the_saved_ones(run):
    loaded = load_run(run.folder, step=None, device=CPU)
    weights = load_weights(LocalPlace(run.folder / "checkpoints"), 3)
    assert set(weights) == {name for name, _ in loaded.model.named_parameters()}
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_evaluate_prints_what_the_loop_would_measure(run, tokenizer):
    printed = json.loads(call("evaluate", run.folder, "--json"))
    dataset = open_dataset(run.evaluation.sets["docs"], run.stream)
    loaded = load_run(run.folder, step=3, device=CPU)
    objective = build_scoring(loaded.model, run)
    plan = plan_evaluation(run, tokenizer, max_windows=None)
    score = evaluate_set(objective, dataset, plan, data=Axis(), device=CPU)
    dataset.close()
    assert printed == {"docs": score.to_dict() | {"weights": "trained"}}
    assert score.windows == dataset.num_windows > 0


def with_set(run: RunConfig, folder: Path, shards: Path) -> Path:
    """A copy of the run that is evaluated on other shards."""
    shutil.copytree(run.folder, folder)
    sets = run.evaluation.model_copy(update={"sets": {"docs": str(shards)}})
    other = run.model_copy(update={"evaluation": sets})
    (folder / "config.yaml").write_text(dump_config(other), encoding="utf-8")
    return folder


@pytest.mark.parametrize("bos", [True, False])
def test_the_bytes_of_a_set_are_its_text_where_bos_begins_it(run, tokenizer, tmp_path, bos, caplog):
    """What is not counted: a document's first token, and nothing else. Where the run learns from
    documents with bos, a set without is told.
    """
    changes = {"folder": str(tmp_path / "shards"), "bos": bos}
    shards = run.shards.model_copy(update=changes)
    build_shards(run.model_copy(update={"shards": shards}), processes=1)
    folder = with_set(run, tmp_path / "run", tmp_path / "shards/docs/heldout")
    record = {"state": {}, "shards": {}, "bos": tokenizer.bos_id}
    (folder / "stream.json").write_bytes(seal(record))
    score = json.loads(call("evaluate", folder, "--json"))["docs"]
    assert ("evaluation.sets.docs: its documents begin with bos = None" in caplog.text) is not bos
    manifest = load_manifest(tmp_path / "shards/docs/heldout")
    texts = list(read_documents(Path(run.corpus.folder) / "docs/heldout"))
    first = sum(len(tokenizer.decode_bytes(tokenizer.encode(text)[:1])) for text in texts)
    missing = 0 if bos else first
    assert score["bytes"] == sum(len(text.encode()) for text in texts) - missing
    assert score["targets"] == sum(shard.tokens for shard in manifest.shards) - len(texts)


def test_evaluate_prints_a_table_and_takes_part_of_a_set(run):
    table = call("evaluate", run.folder, "--set-name", "docs", "--max-windows", 3).splitlines()
    assert table[0].split() == ["set", "windows", "targets", "loss", "perplexity", "bits/byte"]
    assert table[1].split()[:2] == ["docs", "3"]


def test_a_baseline_stands_beside_the_loss_and_says_what_it_was_counted_on(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    sources = {"docs": {"shards": f"{run.shards.folder}/docs/train"}}
    stream = type(run.stream).model_validate(run.stream.model_dump() | {"sources": sources})
    with open_stream(stream, seed=1) as opened:
        tokens = CausalPreparation(mask_documents=True).prepare(opened.read_rows(0, 60)).targets
        with open_ledger(tmp_path / "run", next_step=0, stream=opened, n=0) as ledger:
            for step in range(3):
                row = LedgerRow(step=step, first_n=20 * step, samples=20, tokens=0, digest=0)
                ledger.append(row)
    answer = json.loads(call("evaluate", tmp_path / "run", "--baseline", "ngram", "--json"))["docs"]
    assert answer["ngram_tokens"] == tokens
    assert 2 < answer["ngram"] < answer["loss"]  # the model is as it was drawn
    shown = call("evaluate", tmp_path / "run", "--baseline", "ngram").splitlines()
    assert shown[0].split()[-1] == "ngram" and f"{answer['ngram']:.4f}" in shown[1]
    assert f"counted on {tokens:,} tokens" in shown[2]


def test_an_unknown_set_name_lists_the_known_ones(run):
    with pytest.raises(ConfigError, match="no set 'dcos'. Known: docs"):
        call("evaluate", run.folder, "--set-name", "dcos")


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no config.yaml"):
        call("generate", tmp_path, "--prompt", "x")


def test_a_run_without_a_checkpoint_is_a_clear_error(run, tmp_path):
    shutil.copy(run.folder / "config.yaml", tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        call("evaluate", tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint of step 4. There are: 3"):
        call("evaluate", run.folder, "--step", 4)


def test_a_baseline_that_does_not_fit_is_refused_before_a_checkpoint_is_looked_for(run, tmp_path):
    shutil.copy(run.folder / "config.yaml", tmp_path)
    with pytest.raises(ConfigError, match="--baseline unigram is only for the objectives masked"):
        call("evaluate", tmp_path, "--baseline", "unigram")


def test_a_checkpoint_of_another_model_names_what_differs(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    wider = run.model_copy(update={"model": run.model.model_copy(update={"ffn_width": 512})})
    (tmp_path / "run/config.yaml").write_text(dump_config(wider), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"blocks.0.feed_forward.gate_up.weight is \[512, 32\]"
    ):
        call("generate", tmp_path / "run", "--prompt", "x")


def test_shards_of_another_tokenizer_are_refused(run, tmp_path):
    shutil.copytree(run.evaluation.sets["docs"], tmp_path / "shards")
    manifest = load_manifest(tmp_path / "shards")
    save_manifest(replace(manifest, tokenizer_fingerprint="0" * 64), tmp_path / "shards")
    with_set(run, tmp_path / "run", tmp_path / "shards")
    with pytest.raises(DataError, match="made with the tokenizer 000000000000"):
        call("evaluate", tmp_path / "run")


def test_generate_begins_with_the_prompt_and_repeats_itself_by_seed(run):
    arguments = ("generate", run.folder, "--prompt", "The 天", "--max-tokens", 12, "--seed", 5)
    text = call(*arguments)
    assert text.startswith("The 天")
    assert call(*arguments) == text
    assert call(*arguments, "--greedy") == call(*arguments, "--greedy", "--temperature", 2)


def test_generate_takes_special_tokens_and_stops(run, tokenizer):
    prompt = f"The{tokenizer.piece(tokenizer.eos_id)}"
    arguments = ("generate", run.folder, "--max-tokens", 12, "--seed", 5, "--prompt", prompt)
    model = load_run(run.folder, step=None, device=CPU).model
    for options, special in (((), False), (("--special-tokens",), True)):
        ids = tokenizer.encode(prompt, special=special).tolist()
        written = Generation(model, tokenizer, ids, Sampling(seed=5), max_tokens=12)
        text = tokenizer.decode([token for token in written if token != tokenizer.eos_id])
        assert call(*arguments, *options) == f"{prompt}{text}\n"
        stop = text[len(text) // 2 :][:2]
        said = call(*arguments, *options, "--stop", "no such", "--stop", stop)
        assert said == f"{prompt}{text[: text.index(stop)]}\n"


def test_of_a_run_of_completion_the_answer_alone_is_shown(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    stream = run.stream.model_copy(update={"packing": "best_fit"})
    other = {"objective": CompletionConfig(name="completion"), "stream": stream}
    (tmp_path / "run/config.yaml").write_text(dump_config(run.model_copy(update=other)))
    arguments = ("--prompt", "The 天", "--max-tokens", 4, "--greedy")
    answer = call("generate", tmp_path / "run", *arguments)
    assert "The 天" + answer == call("generate", run.folder, *arguments)


def test_a_text_of_its_own_begins_with_bos_where_the_run_has_read_it(run, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"learned no beginning of a text \(bos: none"):
        call("generate", run.folder, "--max-tokens", 8)
    shutil.copytree(run.folder, tmp_path / "run")
    record = {"state": {}, "shards": {}, "bos": tokenizer.bos_id}
    (tmp_path / "run/stream.json").write_bytes(seal(record))
    own = call("generate", tmp_path / "run", "--max-tokens", 8, "--greedy")
    model = load_run(run.folder, step=None, device=CPU).model
    sampling = Sampling(is_greedy=True)
    generation = Generation(model, tokenizer, [tokenizer.bos_id], sampling, max_tokens=8)
    assert own == tokenizer.decode(list(generation)) + "\n"
    (tmp_path / "run/stream.json").write_text("{}")
    with pytest.raises(DataError, match=r"stream.json cannot be read.* train on"):
        call("generate", tmp_path / "run", "--prompt", "x")


def test_a_suffix_is_refused_by_a_run_that_has_not_learned_to_fill_the_middle(run):
    with pytest.raises(ConfigError, match="--suffix: the run learned objective.name = 'causal'"):
        call("generate", run.folder, "--prompt", "x", "--suffix", "y")


def test_a_prompt_longer_than_the_model_is_a_clear_error(run):
    with pytest.raises(ConfigError, match="the model sees at most 24"):
        call("generate", run.folder, "--prompt", "long " * 40)


def test_a_run_that_was_copied_to_another_machine_generates_what_it_did_at_home(run, tmp_path):
    arguments = ("--prompt", "The 天", "--max-tokens", 8, "--greedy")
    at_home = call("generate", run.folder, *arguments)
    shutil.copytree(run.folder, tmp_path / "run")
    save_tokenizer(load_tokenizer(run.tokenizer.folder), tmp_path / "run" / KEPT_FOLDER)
    elsewhere = run.tokenizer.model_copy(update={"folder": "/nowhere/tokenizer"})
    moved = dump_config(run.model_copy(update={"tokenizer": elsewhere}))
    (tmp_path / "run/config.yaml").write_text(moved, encoding="utf-8")
    assert call("generate", tmp_path / "run", *arguments) == at_home
    model = tmp_path / "run" / KEPT_FOLDER / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        call("generate", tmp_path / "run", *arguments)
    assert str(model) in caught.value.problems[0] and "/nowhere" in caught.value.problems[1]


def test_a_copied_run_prepares_with_the_tokenizer_that_it_keeps(run, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / KEPT_FOLDER)
    for objective, model in (("fill_middle", "decoder"), ("masked", "encoder")):
        tree = run.model_dump(mode="json", exclude={"model"}) | {
            "tokenizer": {"folder": "/nowhere", "vocab_size": tokenizer.vocab_size},
            "objective": {"name": objective},
            "model": {"family": model},
        }
        config = RunConfig.model_validate(tree)
        (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        assert build_preparation(load_run_config(tmp_path)).fields
