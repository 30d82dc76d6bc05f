import json

import pytest

from lmscale.cli.main import main
from lmscale.config import parse_config

YAML = "run: {name: a}\nbatch: {global_windows: 8, micro_windows: 2}\nengine: {zero_stage: 2}\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "c.yaml").write_text(YAML)
    return str(tmp_path / "c.yaml")


def test_what_is_shown_can_be_read_back(config, capsys):
    assert main(["config", "show", config, "--set", "train.steps=7"]) == 0
    shown = parse_config(capsys.readouterr().out)
    assert shown == parse_config(YAML, ["train.steps=7"])


def test_json_carries_what_follows_from_it(config, capsys):
    assert main(["config", "show", config, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["derived"]["tokens_per_step"] == 8 * 1024
    assert shown["derived"]["exports_as"] == "llama (LlamaForCausalLM)"
    assert shown["config"]["engine"]["zero_stage"] == 2


def test_with_a_number_of_ranks_it_shows_what_deepspeed_is_given(config, capsys):
    override = "engine.deepspeed.zero_optimization.overlap_comm=true"
    assert main(["config", "show", config, "--nproc", "2", "--json", "--set", override]) == 0
    derived = json.loads(capsys.readouterr().out)["derived"]
    assert derived["batch"]["accumulation"] == 2
    assert derived["deepspeed"]["zero_optimization"]["stage"] == 2
    assert derived["deepspeed"]["zero_optimization"]["overlap_comm"] is True


def test_a_number_of_ranks_that_does_not_divide_is_refused(config, capsys):
    assert main(["config", "show", config, "--nproc", "3"]) == 2
    assert "cannot be dealt evenly to 3 ranks" in capsys.readouterr().err


def test_the_schema_knows_every_section(capsys):
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"run", "corpus", "stream", "engine", "evaluation"} <= set(schema["properties"])


def test_adapters_of_no_matrix_are_refused_without_a_number_of_ranks(config, capsys):
    section = ("--set", "model.lora.rank=2", "--set", "model.lora.targets=[qqq]")
    assert main(["config", "show", config, *section]) == 2
    assert "no matrix is named 'qqq'" in capsys.readouterr().err
