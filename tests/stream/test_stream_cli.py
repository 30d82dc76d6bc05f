import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from lmscale.cli.stream import app
from lmscale.errors import ConfigError


@pytest.fixture
def config_file(tmp_path, stream_config):
    section = stream_config(a=3, b=1).model_dump(mode="json")
    tree = {
        "run": {"name": "x"},
        "stream": section,
        "batch": {"global_windows": 24, "micro_windows": 8},
        "tokenizer": {"folder": str(tmp_path / "none")},
        "train": {"steps": 10},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_digest_prints_a_line_per_step_equal_for_all_ranks_and_workers(config_file):
    one = run("digest", config_file, "--steps", "3:8", "--workers", "0")
    assert one.exit_code == 0, one.output
    lines = one.output.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"step 3  n 72  samples 24  digest [0-9a-f]{16}", lines[0])
    for world_size, workers in ((2, 1), (8, 0)):
        other = run(
            *("digest", config_file, "--steps", "3:8"),
            *("--world-size", world_size, "--workers", workers),
        )
        assert other.output == one.output


def test_digest_as_json_holds_the_ledgers_rows(config_file):
    found = run("digest", config_file, "--steps", "2", "--workers", "0", "--json")
    rows = [json.loads(line) for line in found.output.splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert set(rows[0]) == {"step", "first_n", "samples", "tokens", "digest"}


def test_steps_must_be_a_range(config_file):
    for text in ("5:5", "a:b", "7:3", "-1:2"):
        found = run("digest", config_file, f"--steps={text}")
        assert isinstance(found.exception, ConfigError)
        assert "write it as A:B" in str(found.exception)


def test_show_prints_the_shares_and_epochs_of_the_sources(config_file):
    found = run("show", config_file, "--json")
    sources = json.loads(found.output)["sources"]
    assert [(source["source"], source["share"]) for source in sources] == [("a", 0.75), ("b", 0.25)]
    assert sources[0]["epochs"] == pytest.approx(180 / sources[0]["windows"], rel=0.1)
    text = run("show", config_file).output
    assert "75.0%" in text and "240 samples of 32 + 1 tokens (concat) in 10 steps" in text
