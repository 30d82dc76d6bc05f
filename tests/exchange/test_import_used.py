"""An import is what a run begins with and learns from; it is exported, and what comes is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from their_folders import LLAMA, change_tensors, save_theirs, save_tokenizer
from tiny_run import run_lmscale, settings, tiny_config, write_tiny_config
from typer.testing import CliRunner

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.app import app
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.import_hf import ImportRequest, import_hf
from lmscale.model.family import build_model
from lmscale.ranks.ranks import Ranks
from lmscale.runs.beginnings import find_source_problems, find_teacher_problems
from lmscale.runs.run_folder import load_run_config
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import fill_weights, open_initial_weights

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def imported(tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("used")
    save_theirs(folder / "theirs", **LLAMA)
    request = ImportRequest(
        folder=folder / "theirs",
        out=folder / "import",
        name="import",
        tokenizer=tiny_data / "tokenizer",
        how="tensors",
    )
    import_hf(request)
    return folder / "import"


@pytest.fixture(scope="module")
def run(imported, tiny_data) -> Path:
    """Of three steps, in two attempts, that began with the import."""
    folder = imported.parent / "run"
    model = yaml.safe_load((imported / "config.yaml").read_text())["model"]
    changes = {
        "run.init_from": str(imported),
        "model": model,
        "tokenizer.folder": str(imported / "tokenizer"),
        "evaluation.sets": {"a": str(tiny_data / "shards/a/heldout")},
        "evaluation.at_end": False,
        "checkpoint.every_steps": 1,
        "engine.schedule.warmup_steps": 0,
        "train.steps": 2,
    }
    config = write_tiny_config(imported.parent / "run.yaml", tiny_data, folder, changes)
    for steps in (2, 3):
        ended = run_lmscale("train", config, *settings({"train.steps": steps}))
        assert ended.code == 0, ended.output
    return folder


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_that_began_with_an_import_resumes_audits_and_says_what_that_came_from(run, imported):
    manifest = load_manifest(LocalPlace(run / "checkpoints"), 3)
    origin = manifest.state["initial"]
    assert (origin["run"], origin["step"]) == ("import", 0)
    assert origin["imported"] == json.loads((imported / "import.json").read_text())
    assert origin["imported"]["folder"] == "theirs"
    shown = invoke("checkpoint", "show", run)
    assert "(run import, an import of theirs (llama, transformers" in shown
    assert json.loads(invoke("runs", "audit", run, "--json"))["is_clean"]


def test_an_import_is_exported_as_what_it_was_bit_for_bit_and_comes_back_the_same(
    imported, tmp_path
):
    theirs = imported.parent / "theirs"
    export_run(ExportRequest(folder=imported, out=tmp_path / "out"))
    before, after = (load_file(f / "model.safetensors") for f in (theirs, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((f / "config.json").read_text()) for f in (theirs, tmp_path / "out"))
    same = {key for key in new if old.get(key) == new[key]}
    assert {"model_type", "architectures", "hidden_size", "vocab_size", "dtype"} <= same
    request = ImportRequest(folder=tmp_path / "out", out=tmp_path / "again", name="import")
    import_hf(request)  # whose tokenizer is in the export, and known as the run's
    first, again = (
        load_manifest(LocalPlace(f / "checkpoints"), 0) for f in (imported, tmp_path / "again")
    )
    assert first.weights == again.weights and first.identity == again.identity


def test_others_weights_are_judged_on_the_runs_own_sets(run, tmp_path):
    """Of an export the loss is the run's own; of weights that another program has rounded to half
    precision nearly so; of damaged ones it is worse.
    """
    out = tmp_path / "out"
    export_run(ExportRequest(folder=run, out=out))
    judge = ("evaluate", run, "--json", "--hf", out)
    own = json.loads(invoke("evaluate", run, "--json"))["a"]
    theirs = json.loads(invoke(*judge))["a"]
    assert theirs.pop("weights") == f"those of {out}" and own.pop("weights") == "trained"
    assert theirs == own

    pytest.importorskip("lm_eval")
    row = {"q": "a", "choices": [" b", " c"], "gold": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "tasks").mkdir()
    task = {"task": "one", "dataset_path": "json", "test_split": "test", "doc_to_text": "q"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    task |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    (tmp_path / "tasks/one.yaml").write_text(json.dumps(task))
    of_tasks = ("--tasks", tmp_path / "tasks", "--json")
    theirs = json.loads(invoke("evaluate", run, "--hf", out, *of_tasks))["tasks"]
    assert not (run / "tasks.jsonl").exists()  # the run's own figures alone are kept
    assert theirs == json.loads(invoke("evaluate", run, *of_tasks))["tasks"]
    (run / "tasks.jsonl").unlink()

    def halve(tensors):
        tensors.update({name: each.half() for name, each in tensors.items()})

    change_tensors(out, halve)
    halved = json.loads(invoke(*judge))["a"]
    assert halved["targets"] == own["targets"]
    assert 0 < abs(halved["loss"] - own["loss"]) < 1e-2
    assert f"weights: those of {out}" in invoke("evaluate", run, "--hf", out)
    with pytest.raises(ConfigError, match="--step, --baseline is of the run's own"):
        invoke("evaluate", run, "--hf", out, "--step", 3, "--baseline", "ngram")
    for name in ("tokenizer.json", "tokenizer.model"):
        (out / name).unlink()
    with pytest.raises(DataError, match="holds no tokenizer"):
        invoke(*judge)


def test_a_run_with_other_rows_than_the_import_is_told_both_ways_out(imported, tiny_data, tmp_path):
    model = load_run_config(imported).model.model_dump() | {"vocab_size": 640}
    changes = {"run.init_from": str(imported), "model": model}
    config = tiny_config(tiny_data, tmp_path, changes)
    own = load_tokenizer(config.tokenizer.folder).fingerprint
    with (
        pytest.raises(CheckpointError) as caught,
        open_initial_weights(config, Ranks(), tokenizer_fingerprint=own) as initial,
    ):
        fill_weights(build_model(config.model, config.sizes), initial)
    assert "set model.vocab_size: 512, or" in caught.value.problems[-1]
    assert "--vocab-size 640" in caught.value.problems[-1]


def test_a_model_that_cannot_be_scored_as_the_run_is_is_refused(run, tiny_data, tmp_path):
    small = {
        "vocab_size": 500, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16,
    }  # fmt: skip
    encoder = save_theirs(tmp_path / "bert", "Bert", "ForMaskedLM", **small)
    with pytest.raises(ConfigError) as caught:
        invoke("evaluate", run, "--hf", encoder)
    family, rows, positions = caught.value.problems
    assert "it is of the family encoder" in family and "500 rows" in rows
    assert "it knows 16 positions" in positions
    other = save_theirs(tmp_path / "other", **LLAMA)
    save_tokenizer(other, ("<s>", "</s>", "<unk>"), "<unk>", eos_token="</s>")
    with pytest.raises(DataError, match="its tokenizer is another one than the run's: .. of .. t"):
        invoke("evaluate", run, "--hf", other)
    (other / "tokenizer.json").unlink()
    shutil.copy(tiny_data / "tokenizer/tokenizer.model", other)
    invoke("evaluate", run, "--hf", other)


def test_a_folder_of_hugging_faces_is_no_run_and_the_way_to_one_is_told(
    imported, tiny_data, tmp_path
):
    theirs = imported.parent / "theirs"
    config = tiny_config(tiny_data, tmp_path, {"run.init_from": str(theirs)})
    (problem,) = find_source_problems(config)
    assert f"run.init_from = {theirs}: " in problem
    assert f"lmscale import hf {theirs} --out RUN" in problem
    teacher = {"objective.name": "distill", "objective.teacher": str(theirs)}
    (problem,) = find_teacher_problems(tiny_config(tiny_data, tmp_path, teacher))
    assert "objective.teacher = " in problem and "lmscale import hf" in problem


def test_a_student_learns_from_an_import_and_comes_nearer(imported, tiny_data, tmp_path):
    changes = {
        "objective": {"name": "distill", "teacher": str(imported), "teacher_share": 1.0},
        "model.vocab_size": 512,
        "engine.optimizer.lr": 1e-2,
        "evaluation.at_end": False,
        "train.steps": 30,
        "checkpoint.every_steps": 30,
    }
    config = write_tiny_config(tmp_path / "run.yaml", tiny_data, tmp_path / "student", changes)
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    lines = (tmp_path / "student/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    divergences = [row["train/teacher_kl"] for row in rows if "train/teacher_kl" in row]
    assert len(divergences) == 30 and max(divergences[-5:]) < 0.9 * divergences[0]
    manifest = load_manifest(LocalPlace(tmp_path / "student/checkpoints"), 30)
    assert manifest.state["teacher"]["imported"]["folder"] == "theirs"
