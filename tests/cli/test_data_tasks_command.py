"""Tasks say what they did and what is missing, to people and to programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmscale.cli import corpus, shards, tokenizer
from lmscale.cli.data_tasks import missing_of, progress_of
from lmscale.config import load_config
from lmscale.errors import ConfigError, DataError


def run(app, *arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for number in range(4):
        lines = [json.dumps({"text": f"Document {n} of file {number}."}) for n in range(200)]
        (tmp_path / f"raw{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text(f"""
run: {{name: t}}
corpus:
  folder: {tmp_path}/corpus
  sources: {{docs: {{inputs: ["{tmp_path}/*.jsonl"]}}}}
  part_bytes: 1
tokenizer: {{folder: {tmp_path}/tokenizer, vocab_size: 300}}
shards: {{folder: {tmp_path}/shards, processes: 1}}
stream: {{packing: best_fit, sequence_length: 64, cache: {{folder: {tmp_path}/cache}}}}
""")
    return path


def test_tasks_of_a_corpus_say_what_they_did_and_the_last_one_what_it_made(config, tmp_path):
    place = tmp_path / "corpus" / "docs"
    told = run(corpus.app, "build", config, "--task", "1/2", "--processes", "1")
    assert told.splitlines() == [
        "task 1 of 2: 2 parts done now",
        "docs: 1 of 2 tasks have ended; missing: task 0",
    ]
    assert run(corpus.app, "status", config, "--tasks", 2).splitlines() == [
        f"{place}: 1 of 2 tasks have ended; missing: task 0",
        "missing: --array=0",
    ]
    assert missing_of(progress_of(load_config(config), "corpus", 2)) == (0,)
    data = json.loads(run(corpus.app, "build", config, "--task", "1/2", "--json"))
    assert (data["task"], data["tasks"], data["units_done"], data["units_found"]) == (1, 2, 0, 2)
    assert data["unfinished"]["docs"]["missing"] == [0]
    told = run(corpus.app, "build", config, "--task", "0/2", "--processes", "1").splitlines()
    assert told[:2] == ["task 0 of 2: 2 parts done now", f"{place}: built"]
    assert "read              800 documents in 4 files; dropped: none" in told[-1]
    data = json.loads(run(corpus.app, "build", config, "--task", "0/2", "--json"))
    assert data["finished"] == json.loads(run(corpus.app, "show", config, "--json"))
    assert run(corpus.app, "status", config, "--tasks", 2).splitlines() == [
        f"{place}: built",
        "nothing is missing",
    ]
    assert missing_of(progress_of(load_config(config), "corpus", 5)) == ()


def test_status_names_what_does_not_count(config, tmp_path):
    run(corpus.app, "build", config, "--task", "1/4")
    run(corpus.app, "build", config, "--task", "0/2", "--set", "corpus.min_chars=3")
    status = json.loads(run(corpus.app, "status", config, "--tasks", 2, "--json"))
    assert status == {
        "tasks": 2,
        "missing": [0, 1],
        "builds": {
            f"{tmp_path}/corpus/docs": {
                "state": "unfinished",
                "units": 4,
                "done": [],
                "missing": [0, 1],
                "foreign": ["0-of-2"],
                "other_counts": [4],
            }
        },
    }
    told = run(corpus.app, "status", config, "--tasks", 2)
    assert "do not count, being of other settings or inputs: 0-of-2" in told
    assert "what tasks of an array of 4 have finished is used" in told
    assert "missing: --array=0-1" in told


def test_tasks_of_shards_do_the_same_and_count_the_windows(config, tmp_path):
    with pytest.raises(DataError, match="there is no tokenizer"):
        missing_of(progress_of(load_config(config), "shards", 2))
    run(corpus.app, "build", config)
    run(tokenizer.app, "train", config)
    every = missing_of(progress_of(load_config(config), "shards", 3))
    for task in every[:-1]:
        assert "slices done now" in run(shards.app, "build", config, "--task", f"{task}/3")
    status = json.loads(run(shards.app, "status", config, "--tasks", 3, "--json"))
    assert status["missing"] == [every[-1]]
    last = run(shards.app, "build", config, "--task", f"{every[-1]}/3")
    assert "shards/docs/train: built" in last or "shards/docs/heldout: built" in last
    for split in ("train", "heldout"):
        assert list((tmp_path / "shards/docs" / split).glob("windows-best_fit-64.json"))
    assert "nothing is missing" in run(shards.app, "status", config, "--tasks", 3)


@pytest.mark.parametrize("app", [corpus.app, shards.app])
def test_a_task_that_is_none_is_a_mistake(app, config):
    with pytest.raises(ConfigError, match="--task 2/2: give I/N"):
        run(app, "build", config, "--task", "2/2")
