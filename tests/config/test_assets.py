from pathlib import Path

import pytest

from lmscale.cli.main import main
from lmscale.config import load_config
from lmscale.config.assets import find_config, list_configs
from lmscale.errors import ConfigError


def test_a_configuration_of_lmscales_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in list_configs().items():
        assert find_config(Path(name)) == path


def test_a_file_of_ones_own_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("run: {name: mine}\n")
    assert load_config(find_config(Path("demo"))).run.name == "mine"


def test_a_folder_of_a_configuration_s_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_config(Path("demo")) == list_configs()["demo"]


@pytest.mark.parametrize("name", ["llama_7c", "gpt3_1.3", "x", "x" * 300])
def test_a_name_that_nothing_has_is_told_the_known_ones(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="neither such a file nor a configuration") as caught:
        find_config(Path(name))
    assert all(known in str(caught.value) for known in list_configs())
    assert ("Did you mean llama_7b?" in str(caught.value)) == (name == "llama_7c")


@pytest.mark.parametrize("place", ["demo.yaml", "configs/demo", "my.yml"])
def test_a_path_is_a_path(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{place}: there is no such configuration file"):
        load_config(find_config(Path(place)))


def test_commands_take_the_name_and_list_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "show", "gpt3_1.3b", "--set", "run.name=x"]) == 0
    assert "name: x" in capsys.readouterr().out
    assert main(["config", "show", "gpt4"]) == 2
    assert "neither such a file" in capsys.readouterr().err
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_configs())
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["gru_lm"].endswith("where LSTMs have four: 57,018,000 parameters")
    for line in said.values():  # a whole sentence, and one
        assert len(line) > 30 and line.count("(") == line.count(")"), line
        assert ". The " not in line and not line.endswith("."), line
