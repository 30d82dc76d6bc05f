"""A run exports its checkpoints while it trains, and no export can harm it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
from s3_server import open_s3
from tiny_run import (
    children_of,
    committed_steps,
    launch,
    log_commit,
    run_lmscale,
    tiny_config,
    write_tiny_config,
)

from lmscale.cli.export import due_again
from lmscale.config import dump_config, load_config
from lmscale.config.export import ExportConfig
from lmscale.errors import ConfigError, DataError, TransientError
from lmscale.exchange.destination import BEGUN
from lmscale.exchange.exported import MARK
from lmscale.files.run_files import EXPORTS_FILE
from lmscale.runs.commits import read_commits
from lmscale.runs.exports import export_place, find_due, read_exports, record_export
from lmscale.train import exporting
from lmscale.train.exporting import Exporter, check_packages, plan_command
from lmscale.train.kept import plan_kept

EVERY_TWO = {"export.format": "hf", "export.every_steps": 2, "checkpoint.keep_last": 1}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers needs Python 3.11")
def test_a_run_exports_while_it_trains_to_s3_and_a_start_does_what_the_one_before_has_not(
    tiny_data, tmp_path
):
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    run, place = tmp_path / "run", "s3://exports/tiny"
    settings = EVERY_TWO | {"train.steps": 4, "export.folder": "s3://exports"}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, run, settings)
    with open_s3("exports"):
        store = fsspec.filesystem("s3", use_listings_cache=False)
        ended = launch(config, 2, {"export.finish_minutes": 0, "checkpoint.keep_last": 2})
        assert ended.code == 0, ended.output
        assert "the last export is not finished" in ended.output
        assert committed_steps(run) == [2, 4]
        assert not [name for name in store.find(place) if name.endswith(MARK)]

        ended = launch(config, 1)
        assert ended.code == 0, ended.output
        assert f"exported step 4 to {place}/step-000000004" in ended.output
        assert [(row["step"], row["state"]) for row in read_exports(run)] == [
            (2, "left out"),
            (4, "done"),
        ]
        assert committed_steps(run) == [4]  # nothing was saved, and 2 is due no more
        made = json.loads(store.cat_file(f"{place}/step-000000004/config.json"))
        assert made["model_type"] == "llama"
        assert store.exists(f"{place}/step-000000004/{MARK}")
        assert not store.exists(f"{place}/step-000000004/{BEGUN}")
    assert not list((run / "exports").iterdir())


def test_an_export_that_is_a_users_mistake_has_failed_and_another_is_due_at_the_next_start(
    tmp_path, caplog
):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    log_commit(run, 2)
    at_once = {"checkpoint.keep_last": 1, "export.format": "hf", "export.every_steps": 2}
    config = tiny_config(tmp_path, run, at_once)
    exporter = Exporter(config, committed_step=lambda: 2, is_active=True)
    exporter.finish(lambda: False)
    assert "step 2 is not exported (exit code 2)" in caplog.text  # there is no config.yaml
    assert [row["state"] for row in read_exports(run)] == ["failed"]
    log_commit(run, 4)
    (run / "config.yaml").write_text(dump_config(config))
    exporter = Exporter(config, committed_step=lambda: 4, is_active=True)
    exporter.finish(lambda: False)
    # There is no tokenizer, which might come back.
    assert "step 4 is not exported (exit code 1): error: " in caplog.text
    assert "The next start of the run tries again" in caplog.text
    assert [commit.step for commit in find_due(config.export, run)] == [4]


def test_what_is_due_is_kept_and_a_rewound_step_is_due_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_config(tmp_path, run, EVERY_TWO)
    log_commit(run, 1)
    log_commit(run, 2)
    log_commit(run, 4)
    log_commit(run, 5, reason="last")
    assert [commit.step for commit in find_due(config.export, run)] == [2, 4, 5]
    spare = plan_kept(config, run, num_rewinds=9)
    assert spare([1, 2, 4, 5], 5)["export"] == [2, 5]  # the one that is read, and the next
    second = read_commits(run)[1]
    record_export(run, second, "done")
    assert [commit.step for commit in find_due(config.export, run)] == [4, 5]
    log_commit(run, 2, sha256="of a step that was done anew")
    assert [commit.step for commit in find_due(config.export, run)] == [2, 4, 5]
    never = tiny_config(tmp_path, run, {"export.format": "hf"})
    assert find_due(never.export, run) == []


def test_of_those_that_are_late_the_newest_is_begun_and_an_end_of_the_run_ends_it(
    tmp_path, monkeypatch
):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # by which it would pass for a rank
        monkeypatch.setenv(name, "1")
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    config = tiny_config(tmp_path, run, EVERY_TWO)
    log_commit(run, 2)
    log_commit(run, 4)
    before = {*children_of(os.getpid())}
    exporter = Exporter(config, committed_step=lambda: 4, is_active=True)
    exporter.finish(lambda: True)  # a stop is asked for
    assert [(row["step"], row["state"]) for row in read_exports(run)] == [(2, "left out")]
    [process] = {*children_of(os.getpid())} - before
    seen = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=" in seen and b"OMP_NUM_THREADS=1" in seen
    assert not [each for each in seen if each.startswith((b"RANK=", b"LOCAL_RANK=", b"WORLD_"))]
    began_at = time.monotonic()
    exporter.close()
    assert {*children_of(os.getpid())} <= before
    assert time.monotonic() - began_at < 9
    assert [commit.step for commit in find_due(config.export, run)] == [4]
    other_rank = Exporter(config, committed_step=lambda: 4, is_active=False)
    other_rank.finish(lambda: False)
    assert {*children_of(os.getpid())} <= before


def test_what_no_row_can_be_written_of_is_not_begun_again_at_every_step(
    tmp_path, caplog, monkeypatch
):
    refused = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(exporting, "plan_command", lambda config, step: refused)
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / EXPORTS_FILE).mkdir()  # nothing can be appended to it
    log_commit(run, 2)
    config = tiny_config(tmp_path, run, EVERY_TWO | {"export.finish_minutes": 0.02})
    exporter = Exporter(config, committed_step=lambda: 2, is_active=True)
    for _ in range(3):
        exporter.finish(lambda: False)
    assert caplog.text.count("step 2 is not exported (exit code 2)") == 1
    assert "exports.jsonl: " in caplog.text


def test_an_export_that_takes_too_long_is_ended_and_the_next_one_is_begun(
    tmp_path, caplog, monkeypatch
):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    log_commit(run, 2)
    config = tiny_config(tmp_path, run, EVERY_TWO)
    with closing(Exporter(config, committed_step=lambda: 2, is_active=True)) as exporter:
        exporter.finish(lambda: True)
        assert exporter._running is not None
        process = exporter._running[1]
        process.send_signal(signal.SIGSTOP)  # it hangs, and hears no request to end
        exporter._limit = time.monotonic()
        exporter._look()
        assert "the export of step 2 takes too long" in caplog.text and process.poll() is None
        monkeypatch.setattr(exporting, "END_SECONDS", 0.0)
        exporter._look()
        assert process.wait(9) == -signal.SIGKILL
        log_commit(run, 4)
        exporter._committed_step = lambda: 4
        exporter._look()
        assert exporter._running is not None and exporter._running[0].step == 4


def test_only_what_the_settings_rule_out_is_refused_for_good():
    with pytest.raises(ConfigError), due_again(beside=1):
        raise ConfigError("no such format")
    with pytest.raises(DataError), due_again(beside=None):
        raise DataError("No space is left")
    with pytest.raises(TransientError, match="No space is left"), due_again(beside=1):
        raise DataError("No space is left")


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("hf", "transformers", "hf"), ("gguf", "xllamacpp", "gguf"), ("peft", "peft", "peft")],
)
def test_a_package_that_exports_need_is_asked_for_before_the_training(
    format, package, extra, monkeypatch
):
    base = "base" if format == "peft" else ""
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == package else name)
    config = ExportConfig(format=format, every_steps=2, base=base)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*\.\[{extra}\]"):
        check_packages(config)
    check_packages(config.model_copy(update={"every_steps": 0}))


def test_gguf_is_a_file(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", {"export.folder": "/there"})
    assert export_place(config, 7) == "/there/tiny/step-000000007"  # another run's is beside it
    config = tiny_config(tmp_path, tmp_path / "run", {"export.folder": "s3://b/there"})
    assert export_place(config, 7) == "s3://b/there/tiny/step-000000007"
    config = tiny_config(tmp_path, tmp_path / "run", {"export.format": "gguf"})
    assert export_place(config, 7) == str(tmp_path / "run/exports/step-000000007.gguf")
    small = tiny_config(tmp_path, tmp_path / "run", {"export": {"format": "gguf", "dtype": "q8_0"}})
    assert "--step 7 --format gguf --dtype q8_0" in " ".join(plan_command(small, 7))


def test_a_model_that_cannot_be_exported_is_refused_before_it_is_trained(tmp_path):
    places = {"model.positions": "learned", "export.format": "hf"}
    config = write_tiny_config(tmp_path / "c.yaml", tmp_path, tmp_path / "run", places)
    ended = run_lmscale("train", config)
    assert ended.code == 2
    assert "no architecture of transformers computes this" in ended.output
    assert "positions = 'learned' (there 'rope')" in ended.output
    assert not (tmp_path / "run").exists()
    text = config.read_text()
    config.write_text(text.replace("format: hf", "format: null"))
    load_config(config)
    with pytest.raises(ConfigError, match=r"every_steps = 3 needs a format: hf, gguf or peft"):
        load_config(config, ["export.every_steps=3"])
    with pytest.raises(ConfigError, match="give a multiple of checkpoint.every_steps = 2"):
        load_config(config, ["export.every_steps=3", "export.format=hf", "model.positions=rope"])


def test_a_run_s_adapters_are_exported_beside_the_base_that_they_adapt(tmp_path):
    lora = {"model.lora.rank": 2, "run.init_from": "base"}
    peft = lora | {"export.format": "peft", "export.every_steps": 2, "export.base": "base-hf"}
    config = tiny_config(tmp_path, tmp_path / "run", peft | {"export.keep": 3})
    command = " ".join(plan_command(config, 4))
    assert "--step 4 --format peft --dtype fp32" in command
    assert "--format peft" in command and "--base base-hf --keep 3" in command
    refused = {
        "the model has no adapters": {"export.format": "peft", "export.base": "base-hf"},
        "format peft needs the base's folder": peft | {"export.base": ""},
        "format peft writes fp32": peft | {"export.dtype": "bf16"},
        "nothing can be written there": {"export.folder": "https://example.org/exports"},
    }
    for why, overrides in refused.items():
        with pytest.raises(ValueError, match=why):
            tiny_config(tmp_path, tmp_path / "run", overrides)
