"""``lmscale import hf``: a folder of transformers' becomes a run's, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from their_folders import LLAMA, change_tensors, save_theirs, transformers
from typer.testing import CliRunner

from lmscale.checkpoint.find import find_damage, load_manifest
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.app import app
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.evaluation.run import load_run
from lmscale.exchange.import_hf import ImportRequest, import_hf
from lmscale.exchange.import_run import plan_run, write_run
from lmscale.runs.run_folder import read_status
from lmscale.tokenizer.codec import load_tokenizer

CPU = torch.device("cpu")


def bring(folder: Path, out: Path, tokenizer: Path, **settings):
    return import_hf(
        ImportRequest(folder=folder, out=out, name=out.name, tokenizer=tokenizer, **settings)
    )


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(LocalPlace(run / "checkpoints"), 0)


def refusal(folder: Path, tmp_path: Path, tokenizer: Path, **settings) -> LmscaleError:
    """Why it cannot be imported; that nothing is left is seen to."""
    out = tmp_path / "out" / "run"
    with pytest.raises(LmscaleError) as caught:
        bring(folder, out, tokenizer, **settings)
    assert caught.value.exit_code == 2
    assert not out.parent.exists() or not [*out.parent.iterdir()]
    return caught.value


@pytest.fixture(scope="module")
def tokenizer(tiny_data) -> Path:
    return tiny_data / "tokenizer"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_theirs(tmp_path_factory.mktemp("theirs") / "tiny-llama", **LLAMA)


@pytest.fixture(scope="module")
def imported(llama, tokenizer, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("imported") / "run"
    words = ("import", "hf", llama, "--out", run, "--tokenizer", tokenizer)
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "tokens of greedy continuations are the same" in result.output
    assert "run.init_from" in result.output
    return run


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """Of the folder, to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@torch.no_grad()
def test_an_import_is_a_run_with_their_logits_and_says_what_it_was(imported, llama, tokenizer):
    loaded = load_run(imported, step=None, device=CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama)
    ids_BT = torch.randint(0, 512, (2, 60))
    begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    layout = loaded.model.lay_out(begins_BT, mask_documents=False)
    logits_BTV, their_BTV = loaded.model.head(loaded.model(ids_BT, layout)), theirs(ids_BT).logits
    assert (logits_BTV - their_BTV).norm() <= 1e-5 * their_BTV.norm()
    assert loaded.step == 0
    assert loaded.tokenizer.fingerprint == load_tokenizer(tokenizer).fingerprint
    assert loaded.config.model.max_positions == 64

    status = read_status(imported)
    assert status.imported_from == f"tiny-llama (llama, transformers {transformers.__version__})"
    assert not status.problems
    place = LocalPlace(imported / "checkpoints")
    manifest = load_manifest(place, 0)
    assert not find_damage(place, 0, manifest.files)
    origin = manifest.state["imported"]
    assert origin == json.loads((imported / "import.json").read_text())
    assert (origin["folder"], origin["model_type"], origin["dtype"]) == (
        *("tiny-llama", "llama", "float32"),
    )
    for name in ("model.safetensors", "config.json"):
        content = (llama / name).read_bytes()
        assert origin["files"][name] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "command", ["runs status", "runs list", "runs audit", "checkpoint list", "checkpoint show"]
)
def test_commands_show_an_import_as_what_it_is(imported, command):
    place = imported.parent if command == "runs list" else imported
    result = CliRunner().invoke(app, [*command.split(), str(place)], catch_exceptions=False)
    wanted = {
        "runs audit": "an import of tiny-llama (llama,",
        "runs": "imported: tiny-llama (llama,",
        "checkpoint list": "asked  last, asked",
        "checkpoint show": "none: weights alone",
    }
    assert wanted.get(command, wanted["runs"]) in result.output


def test_halves_become_masters_exactly_from_any_number_of_files(tokenizer, tmp_path):
    whole = save_theirs(tmp_path / "whole", dtype=torch.bfloat16, **LLAMA)
    parts = save_theirs(tmp_path / "parts", dtype=torch.bfloat16, max_shard_size="60KB", **LLAMA)
    assert len([*parts.glob("*.safetensors")]) > 2
    done = bring(parts, tmp_path / "run", tokenizer, how="tensors")
    assert done.parity is None and done.plan.config.engine.precision == "bf16"
    theirs, ours = load_file(whole / "model.safetensors"), weights_of(tmp_path / "run")
    assert torch.equal(ours["embedding.weight"], theirs["model.embed_tokens.weight"].float())
    gate_up = ours["blocks.1.feed_forward.gate_up.weight"].split(64)
    for name, value in zip(("gate", "up"), gate_up, strict=True):
        stored = theirs[f"model.layers.1.mlp.{name}_proj.weight"]
        assert torch.equal(value.bfloat16(), stored) and torch.equal(value, stored.float())
    again = bring(whole, tmp_path / "again", tokenizer, how="tensors")
    assert load_manifest(LocalPlace(tmp_path / "again/checkpoints"), 0).weights == (
        load_manifest(LocalPlace(tmp_path / "run/checkpoints"), 0).weights
    )
    assert again.plan.weights.dtype == "bfloat16"


def test_all_tensors_that_do_not_fit_are_told_at_once(copy, tmp_path, tokenizer):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(1)
        tensors["lm_head.weight"] = torch.zeros(500, 48)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 48, dtype=torch.int8)

    change_tensors(copy, change)
    assert [p.partition(": ")[2] for p in refusal(copy, tmp_path, tokenizer).problems] == [
        "model.norm.weight is missing.",
        "model.layers.0.mlp.up_proj.weight is of I8, which holds no weights.",
        "lm_head.weight is [500, 48], and by config.json it should be [512, 48].",
        "model.layers.2.mlp.up_proj.weight is no tensor of a llama that lmscale has.",
    ]


def test_damaged_and_missing_files_are_named_with_what_to_do(copy, tmp_path, tokenizer):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    assert "model.safetensors is cut short" in str(refusal(copy, tmp_path, tokenizer))
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "x": "b.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    file.rename(copy / "a.safetensors")
    problems = refusal(copy, tmp_path, tokenizer).problems
    assert len(problems) == 2 and "a.safetensors is cut short" in problems[0]
    assert "b.safetensors is missing, which model.safetensors.index.json names" in problems[1]
    index["weight_map"]["x"] = "../../x"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "leads out of" in str(refusal(copy, tmp_path, tokenizer))


def test_pickles_are_not_opened_and_there_is_a_way_out(copy, tmp_path, tokenizer):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    said = str(refusal(copy, tmp_path, tokenizer))
    assert "its weights are pickled ('pytorch_model.bin')" in said
    assert "weights_only=True" in said and "model.safetensors" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "lama"}, "model_type = 'lama' is an architecture .* Did you mean llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized .*'gptq'.*dequantize"),
        ({"hidden_act": "tanhshrink"}, "the activation 'tanhshrink'"),
        ({"hidden_size": "x"}, "transformers cannot read it: .*hidden_size"),
        ({"num_attention_heads": 0}, "transformers cannot read it"),
        ({"dtype": "fp8"}, "transformers cannot read it: .*fp8"),
        ({"architectures": {"a": 1}}, "architectures = {'a': 1} is no list of names"),
        ({"architectures": [5], "id2label": "x"}, "5. is no list.*id2label = 'x' is no object"),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "m.M"}},
            "code of its own, which .* never",
        ),
    ],
)
def test_a_config_json_that_is_none_of_ours_is_refused(copy, tmp_path, tokenizer, change, said):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused = refusal(copy, tmp_path, tokenizer)
    refused.problems = (" ".join(refused.problems),)
    import re

    assert re.search(said, refused.problems[0])


def test_a_folder_without_a_config_json_is_refused(copy, tmp_path, tokenizer):
    (copy / "config.json").write_text("{")
    assert "config.json: damaged" in str(refusal(copy, tmp_path, tokenizer))
    (copy / "config.json").unlink()
    assert "there is no config.json here" in str(refusal(copy, tmp_path, tokenizer))
    (copy / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in str(refusal(copy, tmp_path, tokenizer))
    assert "there is no such folder" in str(refusal(tmp_path / "none", tmp_path, tokenizer))
    said = str(refusal(Path("Qwen/Qwen3-0.6B"), tmp_path, tokenizer))
    assert "hf download Qwen/Qwen3-0.6B --local-dir DIR" in said


def test_code_that_a_folder_names_is_not_run(copy, tmp_path, tokenizer, caplog):
    path = copy / "config.json"
    tree = json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "own.Config"}}
    path.write_text(json.dumps(tree))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    bring(copy, tmp_path / "run", tokenizer)
    assert "which is not run: the model is read as llama" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_a_tied_matrix_that_is_two_in_the_files_is_refused(tmp_path, tokenizer):
    folder = save_theirs(tmp_path / "tied", tie_word_embeddings=True, **LLAMA)

    def copy_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(folder, copy_head)
    bring(folder, tmp_path / "run", tokenizer, how="tensors")
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    said = str(refusal(folder, tmp_path, tokenizer))
    assert "lm_head.weight and model.embed_tokens.weight differ" in said


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(copy, tmp_path, tokenizer):
    change_tensors(copy, lambda tensors: tensors["model.norm.weight"][3].fill_(torch.nan))
    assert ": model.norm.weight hold values that are not finite" in str(
        refusal(copy, tmp_path, tokenizer)
    )


def test_an_import_that_is_not_verified_leaves_nothing(llama, tmp_path, tokenizer):
    out = tmp_path / "out" / "run"
    plan = plan_run(llama, out, tokenizer, name="run")

    def check(run: Path) -> None:
        assert (run / "config.yaml").exists()
        raise DataError("another model")

    with pytest.raises(DataError, match="another model"):
        write_run(plan, out, check=check, advance=lambda size: None)
    assert not [*out.parent.iterdir()]
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(ConfigError, match="is there already"):
        plan_run(llama, out, tokenizer, name="run")


def test_rows_are_added_by_the_mean_of_those_that_stand_for_something(llama, tokenizer, tmp_path):
    bring(llama, tmp_path / "run", tokenizer, vocab_size=520)
    weights = weights_of(tmp_path / "run")
    for name in ("embedding.weight", "head.weight"):
        rows = weights[name]
        assert rows.shape == (520, 48)
        torch.testing.assert_close(rows[512:], rows[:512].mean(0).expand(8, 48))


def test_a_tokenizer_with_more_ids_than_rows_is_refused_with_both_ways_out(tokenizer, tmp_path):
    folder = save_theirs(tmp_path / "small", **LLAMA | {"vocab_size": 500})
    said = str(refusal(folder, tmp_path, tokenizer))
    assert "its tokenizer has 512 ids and its embedding 500 rows" in said
    assert "--vocab-size 512" in said and "--tokenizer" in said
    bring(folder, tmp_path / "run", tokenizer, vocab_size=512)
    assert load_run(tmp_path / "run", step=None, device=CPU).config.vocab_size == 512


def test_only_rows_that_stand_for_nothing_may_be_cut(tokenizer, tmp_path):
    folder = save_theirs(tmp_path / "padded", **LLAMA | {"vocab_size": 530})
    said = str(refusal(folder, tmp_path, tokenizer, vocab_size=511))
    assert "--vocab-size 511: the tokenizer has 512 ids" in said
    bring(folder, tmp_path / "run", tokenizer, vocab_size=512)
    theirs = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(weights_of(tmp_path / "run")["head.weight"], theirs[:512])
