"""An export that cannot be, or is stopped, says why and leaves nothing."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from handmade_runs import make_run
from rank_cases import Case, run_cases
from safetensors.torch import load_file
from small_disk import run_on_small_disk
from theirs import import_transformers
from tiny_run import run_lmscale, start_lmscale, tiny_config

from lmscale.config import RunConfig, dump_config
from lmscale.errors import EXIT_RESUMABLE, EXIT_USER, ConfigError, DataError
from lmscale.exchange import export as exporting
from lmscale.exchange import verify, write_tensors
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import MARK, Exported, ExportRequest
from lmscale.tokenizer.codec import load_tokenizer

import_transformers()
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory) -> RunConfig:
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("export") / "run")
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    return config


def export(run: RunConfig, out: Path, **more) -> Exported:
    return export_run(ExportRequest(folder=run.folder, out=out, **more))


def test_a_file_that_reads_back_otherwise_is_no_export(run, tmp_path, monkeypatch):
    monkeypatch.setattr(write_tensors, "_read_back", lambda path: "0" * 64)
    with pytest.raises(DataError, match="what was read back is not what was written"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tensors_alone_are_compared_where_the_memory_is_short(run, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "available_bytes", lambda: 10**9)
    exported = export(run, tmp_path / "out", dtype="bf16")
    assert exported.check.parity is None
    text = (tmp_path / "out/README.md").read_text()
    assert "Logits were not compared: that takes some 2.0 GB of memory and 1.0 GB were free" in text


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 65}])
def test_tensors_of_another_class_are_found_without_memory_for_it(
    run, tmp_path, monkeypatch, change
):
    render = exporting.render_config
    monkeypatch.setattr(exporting, "render_config", lambda *given: {**render(*given), **change})
    with pytest.raises(DataError, match="it wants model.layers.2|mlp.up_proj.weight is .65, 32"):
        export(run, tmp_path / "out", verify="tensors")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_lies_elsewhere_than_its_header_says_is_found(run, tmp_path, monkeypatch):
    """A file that is as it was meant may be meant wrongly."""
    render = write_tensors.render_header

    def swap(entries):
        keys = "k_proj", "v_proj"
        names = {key: f"model.layers.0.self_attn.{key}.weight" for key in keys}
        others = dict(zip(names.values(), reversed(names.values()), strict=True))
        return render([each._replace(name=others.get(each.name, each.name)) for each in entries])

    monkeypatch.setattr(write_tensors, "render_header", swap)
    with pytest.raises(DataError, match="k_proj.weight is not what the checkpoint has"):
        export(run, tmp_path / "out", verify="tensors")
    with pytest.raises(DataError, match="transformers gives other answers"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_value_that_the_dtype_does_not_have_names_its_parameter(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "run")
    begins = {"norm.weight": torch.full((32,), 1e5)}
    make_run(config, load_tokenizer(tiny_data / "tokenizer"), begins=begins)
    with pytest.raises(DataError, match="norm.weight holds a value that is not finite.*--dtype"):
        export(config, tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_told_before_it_is_written_to_and_otherwise_leaves_nothing(run, tmp_path):
    (tmp_path / "disk").mkdir()
    script = HERE / "exporting_to_full_disk.py"
    saw = json.loads(run_on_small_disk(tmp_path / "disk", 100_000, script, run.folder))
    assert " left, and the export takes" in saw["said"][0]
    assert "No space is left in" in saw["said"][1] and "while writing an export" in saw["said"][1]
    assert saw["left"] == []


def test_what_a_killed_export_left_is_cleared_and_what_a_living_one_writes_is_not(run, tmp_path):
    left, living = tmp_path / ".out.1.partial", tmp_path / ".out.2.partial"
    left.mkdir()
    living.mkdir()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        export(run, tmp_path / "out")
    finally:
        os.close(descriptor)
    assert living.exists() and not left.exists()


def test_without_transformers_one_line_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"transformers.*pip install -e '.\[hf\]' -c constraints"):
        export(run, tmp_path / "out")


def test_the_command_says_what_it_wrote_and_ends_with_2_for_a_mistake(run, tmp_path):
    done = run_lmscale("export", run.folder, "--out", tmp_path / "out")
    assert done.code == 0, done.output
    assert "LlamaForCausalLM, 21 tensors of fp32" in done.output
    assert "the same ids for all of" in done.output and "from_pretrained" in done.output
    (tmp_path / "out" / MARK).unlink()
    done = run_lmscale("export", run.folder, "--out", tmp_path / "out")
    assert done.code == EXIT_USER and done.output.startswith("error: ")
    assert "Traceback" not in done.output


def test_an_export_that_is_told_to_stop_leaves_nothing(run, tmp_path):
    process = start_lmscale("export", run.folder, "--out", tmp_path / "out")
    try:
        while not list(tmp_path.glob(".out.*")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.wait() == EXIT_RESUMABLE, output
    assert not list(tmp_path.iterdir())


@pytest.mark.ranks
def test_fragments_of_every_zero_stage_are_exported_without_deepspeed(
    tiny_data, tmp_path, monkeypatch
):
    steps = {"train.steps": 2, "engine.schedule.warmup_steps": 1}
    cases = [
        Case(
            name=f"{stage}",
            data=str(tiny_data),
            folder=str(tmp_path / f"zero{stage}"),
            overrides={**steps, "engine.zero_stage": stage},
        )
        for stage in range(4)
    ]
    run_cases({2: cases}, tmp_path / "ranks")
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # whoever imports it now fails
    weights = []
    for case in cases:
        config = tiny_config(tiny_data, Path(case.folder), case.overrides)
        (config.folder / "config.yaml").write_text(dump_config(config))
        exported = export(config, tmp_path / case.name)
        assert exported.found.manifest.written_by["zero_stage"] == int(case.name)
        weights.append(load_file(tmp_path / case.name / "model.safetensors"))
    for name, value in weights[0].items():  # trained alike, but for the order of their sums
        assert all(torch.allclose(value, other[name], atol=1e-5) for other in weights[1:])
