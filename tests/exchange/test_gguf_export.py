"""A run's checkpoint becomes one file that llama.cpp runs, or nothing is left."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from handmade_runs import make_run
from tiny_run import tiny_config

from lmscale.checkpoint.manifest import parse_manifest
from lmscale.cli.main import main
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.exchange import gguf_export, llama_cpp
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.gguf_export import GgufExported, export_gguf, report_gguf
from lmscale.tokenizer.codec import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_data: Path) -> Tokenizer:
    return load_tokenizer(tiny_data / "tokenizer")


@pytest.fixture(scope="module")
def run(tiny_data: Path, tokenizer: Tokenizer, tmp_path_factory) -> RunConfig:
    """Of Llama's architecture, with ids of the objective's."""
    overrides = {
        "evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")},
        "objective.name": "fill_middle",
    }
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("gguf") / "run", overrides)
    make_run(config, tokenizer)
    return config


def export(run: RunConfig, out: Path, **more) -> GgufExported:
    return export_gguf(ExportRequest(folder=run.folder, out=out, **more))


def test_llama_cpp_goes_on_from_held_out_text_as_the_run_does(run, tmp_path):
    exported = export(run, tmp_path / "model.gguf")
    check = exported.check
    assert check and check.largest_error < 1e-4 and check.tokens >= 32 and check.texts > 20
    fields = gguf.GGUFReader(str(tmp_path / "model.gguf")).fields
    said = {name: field.contents() for name, field in fields.items()}
    assert said["lmscale.checkpoint"] == exported.plan.found.manifest.hash
    assert (said["general.name"], said["lmscale.step"]) == ("tiny", 7)
    assert said["tokenizer.ggml.tokens"][512:] == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    assert said["tokenizer.ggml.add_bos_token"] is False
    rows = report_gguf(exported).rows
    assert ("file", str(tmp_path / "model.gguf")) in rows
    assert any(text.startswith("llama.cpp (xllamacpp 20") for name, text in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_lmscale_wrote_is_replaced_and_what_it_did_not_only_by_force(run, tmp_path):
    out = tmp_path / "model.gguf"
    exported = export(run, out, verify="tensors")
    assert exported.check is None and "llama.cpp did not run" in str(report_gguf(exported).rows)
    assert export(run, out, verify="tensors", dtype="q8_0").bytes < 0.6 * exported.bytes
    out.write_text("mine")
    with pytest.raises(ConfigError, match="model.gguf exists, and lmscale did not write it.*force"):
        export(run, out)
    export(run, out, verify="tensors", force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    kept = (run.folder / "config.yaml").read_bytes()
    for place in (run.folder / "config.yaml", run.folder / "new.gguf"):
        with pytest.raises(ConfigError, match="is in the run"):
            export(run, place, force=True)
    assert (run.folder / "config.yaml").read_bytes() == kept


def test_a_file_that_computes_something_else_is_no_export(run, tmp_path, monkeypatch):
    """llama.cpp is what finds it: nothing else looks at what a setting means."""

    def add_wrongly(writer, *arguments):
        add(writer, *arguments)
        writer.kv_data[0]["llama.rope.freq_base"].value = 500.0

    add = gguf_export.add_settings
    monkeypatch.setattr(gguf_export, "add_settings", add_wrongly)
    with pytest.raises(DataError, match="computes something else of the file"):
        export(run, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_no_export(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    path = copy / "checkpoints/step-000000007/manifest.json"
    manifest = replace(parse_manifest(path.read_text(), path), is_finite=False)
    path.write_text(json.dumps(manifest.to_json()))
    with pytest.raises(CheckpointError, match="holds weights that are not finite"):
        # Without a step, it would not be found.
        export_gguf(ExportRequest(folder=copy, out=tmp_path / "model.gguf", step=7))
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_llama_cpp_that_is_missing_is_told_before_anything_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    monkeypatch.setattr(gguf_export, "write_gguf", None)  # not reached
    with pytest.raises(ConfigError, match=r"needs llama.cpp: pip install .*--verify tensors"):
        export(run, tmp_path / "model.gguf")
    monkeypatch.undo()
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert export(run, tmp_path / "model.gguf", verify="tensors").bytes


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Of one file, as on a disk that fills."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("num_bytes", [2_000, 100_000])
def test_a_disk_that_fills_leaves_nothing(run, tmp_path, num_bytes):
    with room_for(num_bytes), pytest.raises(DataError, match="No space is left in .* an export"):
        export(run, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_family_that_llama_cpp_does_not_run_is_refused(tiny_data, tokenizer, tmp_path):
    overrides = {"model": {"family": "encoder", "layers": 1, "width": 32, "heads": 2}}
    overrides["model"]["token_types"] = 1
    overrides |= {"objective.name": "masked"}
    config = tiny_config(tiny_data, tmp_path / "run", overrides)
    make_run(config, tokenizer)
    with pytest.raises(ConfigError, match="bert cannot be exported as GGUF. Those that"):
        export(config, tmp_path / "model.gguf")


def test_the_command_says_what_it_wrote_and_how_to_go_on(run, tmp_path, capsys):
    out = tmp_path / "model.gguf"
    words = ["export", str(run.folder), "--out", str(out), "--verify", "tensors"]
    assert main([*words, "--dtype", "q8_0"]) == 2
    assert "--dtype q8_0 is of GGUF files: add --format gguf" in capsys.readouterr().err
    more = ["--format", "gguf", "--base", str(tmp_path), "--max-shard", "1"]
    assert main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert "--base is of --format peft" in said and "--max-shard is of --format hf" in said
    for size in ("inf", "nan"):
        assert main([*words, "--max-shard", size]) == 2
        assert "--max-shard" in capsys.readouterr().err
    assert main([*words, "--format", "gguf", "--dtype", "q8_0"]) == 0
    assert f"llama-completion -m {out}" in capsys.readouterr().out
