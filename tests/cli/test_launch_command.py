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


@pytest.mark.parametrize("place", ["x.txt", "x.txt/r", "n" * 300, "foreign", "others"])
def test_a_folder_that_cannot_be_the_runs_is_refused_and_left_as_it_was(tmp_path, capsys, place):
    (tmp_path / "x.txt").write_text("")
    for name, file, text in (("foreign", "notes", ""), ("others", "config.yaml", "run: {name: b}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert main(["launch", "local", "c.yaml", "--nproc", "2", "--set", f"run.folder={place}"]) == 2
    error = capsys.readouterr().err
    assert place.partition("/")[0] in error and "run.folder" in error
    assert sorted(tmp_path.rglob("*")) == before
