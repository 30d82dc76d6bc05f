"""``lmscale export``: what transformers loads from a run's checkpoint, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from handmade_runs import STEP, make_run
from labelled_data import LABELLED, labelled_recipe
from recipes import RECIPES
from theirs import import_transformers
from tiny_run import tiny_config

from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.exchange import export as exporting
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import MARK, Exported, ExportRequest
from lmscale.exchange.gguf_export import export_gguf
from lmscale.exchange.write_tensors import INDEX
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_tokenizer

transformers = import_transformers()


@pytest.fixture(scope="module")
def tokenizer(tiny_data: Path) -> Tokenizer:
    return load_tokenizer(tiny_data / "tokenizer")


@pytest.fixture(scope="module")
def run(tiny_data: Path, tokenizer: Tokenizer, tmp_path_factory) -> RunConfig:
    """Of Llama's architecture."""
    config = tiny_config(
        tiny_data,
        tmp_path_factory.mktemp("export") / "run",
        {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}},
    )
    make_run(config, tokenizer)
    return config


def export(run: RunConfig, out: Path, **more) -> Exported:
    return export_run(ExportRequest(folder=run.folder, out=out, **more))


def test_transformers_generates_from_an_export_what_the_run_would(run, tmp_path):
    exported = export(run, tmp_path / "out", max_shard_bytes=60_000)
    assert len(exported.files) > 2 and exported.check.parity.error < 1e-5
    assert (
        exported.check.parity.origin == "held-out set heldout"
        and exported.check.parity.written > 20
    )
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * exported.parameters
    mark = json.loads((tmp_path / "out" / MARK).read_text())
    assert mark["checkpoint"] == exported.found.manifest.hash and len(mark["checkpoint"]) == 64
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForCausalLM" and theirs.dtype == torch.float32
    assert not list(tmp_path.glob(".*"))
    again = export(run, tmp_path / "out", dtype="bf16")  # it may replace what lmscale wrote
    assert again.bytes < 0.6 * exported.bytes and again.check.parity.error < 1e-5


def test_a_model_that_answers_otherwise_is_no_export(run, tmp_path, monkeypatch):
    """The check is what finds it: nothing else looks at what a setting means."""

    def render_wrongly(*arguments):
        return {**render(*arguments), "rms_norm_eps": 0.3}

    render = exporting.render_config
    monkeypatch.setattr(exporting, "render_config", render_wrongly)
    with pytest.raises(DataError, match="other answers: the logits of 5 of 5 samples") as caught:
        export(run, tmp_path / "out")
    assert "of a continuation" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_replaced_only_by_force(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"did not write it .it has no {MARK}.*--force"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", force=True)
    assert not (tmp_path / "out/notes.txt").exists()
    for own in (run.folder, run.folder.parent):
        with pytest.raises(ConfigError, match="which is read. Name another folder"):
            export(run, own, force=True)


def test_what_may_not_be_replaced_is_told_by_force_too(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "file").touch()
    refused = {
        tmp_path / "link": "link is a symbolic link, which is not replaced",
        tmp_path / "file": "exists and is no folder",
        tmp_path / "new/..": "does not name a place by its own name",
        run.folder / "checkpoints": "checkpoints is in the run .*Name a place outside of it",
        run.folder / "new": "is in the run",
        run.folder / "exports": "is in the run",
        tmp_path / "out": "is the folder that this command runs in",
    }
    monkeypatch.chdir(tmp_path / "out")
    for place, why in refused.items():
        with pytest.raises(ConfigError, match=why):
            export(run, place, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link", "file"}
    assert list((run.folder / "checkpoints").iterdir())
    assert export(run, run.folder / "exports/a**b", verify="tensors").bytes


@pytest.mark.parametrize("write", [export_run, export_gguf])
def test_weights_that_are_not_finite_are_not_exported(tiny_data, tokenizer, tmp_path, write):
    config = tiny_config(tiny_data, tmp_path / "run")
    make_run(config, tokenizer, is_finite=False)
    with pytest.raises(CheckpointError, match="not finite"):
        write(ExportRequest(folder=config.folder, out=tmp_path / "out", step=STEP))


def test_rows_that_only_round_a_vocabulary_up_are_left_out(tiny_data, tokenizer, tmp_path):
    overrides = {"objective.name": "fill_middle", "model.tied_embeddings": True}
    config = tiny_config(tiny_data, tmp_path / "run", overrides)
    make_run(config, tokenizer)
    exported = export(config, tmp_path / "out")
    assert config.vocab_size == 640 and exported.plan.sizes.vocab_size == 515
    assert exported.check.parity.origin == "training set a"
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["suppress_tokens"] == [
        *(0, 1, 3),
        *(512, 513, 514),
    ]


def test_a_model_that_no_architecture_is_is_refused_before_anything_is_written(
    tiny_data, tokenizer, tmp_path
):
    config = tiny_config(tiny_data, tmp_path / "run", {"model.qk_norm": True, "model.bias": True})
    make_run(config, tokenizer)
    with pytest.raises(ConfigError, match="nearest one is"):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_names_what_differs(run, tiny_data, tokenizer, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "run")
    make_run(config, tokenizer)
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("ffn_width: 64", "ffn_width: 96"))
    with pytest.raises(CheckpointError, match="ffn_width"):
        export(config, tmp_path / "out")


LLAMA, T5 = "LlamaForCausalLM", "T5ForConditionalGeneration"
CLASSES = {
    **dict.fromkeys(("llama", "mup", "lora", "prefix", "mixture", "completion", "dialogue"), LLAMA),
    "transformer_xl": "MistralForCausalLM",
    "masked": "BertForMaskedLM",
    "masked_order": "BertForPreTraining",
    "masked_next": "BertForMaskedLM",  # of three orders there is no class
    **dict.fromkeys(("classes", "numbers", "matches"), "BertForSequenceClassification"),
    "tags": "BertForTokenClassification",
    "answers": "BertForQuestionAnswering",
    **dict.fromkeys(("t5", "ul2", "pairs"), T5),
    "bart": "BartForConditionalGeneration",
}
LEFT_OUT = {"masked_next": {"pooler", "classifier"}, **dict.fromkeys(LABELLED, {"head"})}
LEFT_OUT |= dict.fromkeys(("pairs", "completion", "dialogue"), set())


@pytest.mark.parametrize("recipe", [*RECIPES, *LABELLED])
def test_a_run_of_every_family_and_objective_is_exported(
    recipe, tiny_data, labelled, tokenizer, tmp_path
):
    """What it ends in there, a text's order or tags as well as tokens, is what it says here."""
    settings = RECIPES.get(recipe) or {}
    if recipe in LABELLED:
        settings = labelled_recipe(recipe, labelled)
        tokenizer = load_tokenizer(labelled.tokenizer.folder)
    config = tiny_config(tiny_data, tmp_path / "run", settings)
    make_run(config, tokenizer)
    if recipe not in CLASSES:
        with pytest.raises(ConfigError, match="transformers has no such models"):
            export(config, tmp_path / "out")
        return
    exported = export(config, tmp_path / "out")
    parity = exported.check.parity
    assert exported.plan.class_name == CLASSES[recipe] and parity.error < 1e-5
    assert parity.origin.startswith("training set")
    assert (parity.written > 10) is (config.model.family != "encoder")
    left_out = {name.partition(".")[0] for name in exported.plan.left_out}
    assert left_out == LEFT_OUT.get(recipe, set())
    card = (tmp_path / "out/README.md").read_text()
    assert all(name in card for name in exported.plan.left_out[:8])
    if config.model.family == "encoder_decoder":
        check_what_may_be_written(tmp_path / "out", config.objective_ids, tokenizer.eos_id)
    if "sentinel_0" in config.objective_ids:
        code = card.partition("```python\n")[2].partition("```")[0]
        loaded: dict = {}
        exec(code.replace('"FOLDER"', repr(str(tmp_path / "out"))), loaded)
        assert loaded["ids"].tolist()[0].count(config.objective_ids["sentinel_0"]) == 1


def check_what_may_be_written(folder, ids: dict, eos: int) -> None:
    """All that the objective has as targets, and what ends a text in ``lmscale generate``."""
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [ids["end"], eos]
    targets = {number for name, number in ids.items() if name.startswith("sentinel")}
    others = {*ids.values()} - targets - {ids["end"]}
    barred = {*generation["suppress_tokens"]}
    assert others <= barred and not barred & {*targets, ids["end"], eos}
