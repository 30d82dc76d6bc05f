"""The real command line, up to where ranks would start."""

import pytest

from lmscale.cli.main import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("run: {name: a}\nbatch: {global_windows: 8}\n")


def test_a_config_problem_is_told_before_any_rank_starts(tmp_path, capsys):
    assert main(["launch", "local", "c.yaml", "--nproc", "2", "--set", "train.step=3"]) == 2
    assert "train.step: unknown key. Did you mean steps?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_divide_is_told_before_any_rank_starts(tmp_path, capsys):
    assert main(["launch", "local", "c.yaml", "--nproc", "3"]) == 2
    assert "cannot be dealt evenly to 3 ranks" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_number_of_ranks_must_be_given(capsys):
    assert main(["launch", "local", "c.yaml"]) == 2
    assert "--nproc" in capsys.readouterr().err
