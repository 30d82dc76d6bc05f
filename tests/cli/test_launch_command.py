"""The real command line, up to where ranks would start."""

import pytest

from launcher import local
from launcher.outcome import Outcome
from lmscale.cli.main import main
from lmscale.files.jsonl import append_row
from lmscale.ranks.gpus import Gpus


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


@pytest.mark.parametrize("nproc", ["0", "-1", "two", "1.5", "", "10000000"])
def test_a_number_of_ranks_that_is_none_is_refused(capsys, nproc):
    assert main(["launch", "local", "c.yaml", "--nproc", nproc]) == 2
    assert "give the number of ranks, at least one, or auto" in capsys.readouterr().err


def test_without_a_number_of_ranks_what_the_machine_has_is_taken_and_said(
    monkeypatch, tmp_path, capsys
):
    planned = []

    def run(plans):
        planned.append(plans)
        return Outcome(exit_code=0)

    monkeypatch.setattr(local, "find_gpus", lambda: Gpus(count=3))
    monkeypatch.setattr(local, "run_ranks", run)
    monkeypatch.setattr(local, "find_missing_data", lambda config: [])
    assert main(["launch", "local", "c.yaml"]) == 0
    assert len(planned[0]) == 2
    assert capsys.readouterr().err == (
        "--nproc auto: 2 ranks of 3 that could be, as 2 divides a step's 8 windows, on GPUs.\n"
    )


def test_data_that_is_not_there_is_told_before_any_rank_starts(tmp_path, capsys):
    shards = tmp_path / "shards" / "a"
    shards.mkdir(parents=True)
    (shards / "manifest.json").write_text("")
    sets = ["--set", f"stream.sources.a.shards={shards}", "--set", "evaluation.sets.held=shards/b"]
    assert main(["launch", "local", "c.yaml", "--nproc", "2", *sets]) == 2
    tokenizer, held, *more = capsys.readouterr().err.splitlines()[-2:]
    assert "data/tokenizer: there is no tokenizer here. Run `lmscale tokenizer train" in tokenizer
    assert "evaluation.sets.held: shards/b holds no manifest.json" in held and not more
    assert "--set evaluation.sets.held" in held
    assert not (tmp_path / "runs").exists()


def test_a_run_that_has_ended_needs_its_data_no_more(monkeypatch, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    end = {"event": "end", "time": 1.0, "attempt": 1, "step": 9, "seconds": {}}
    append_row(folder / "attempts.jsonl", end | {"reason": "finished"})
    monkeypatch.setattr(local, "check_start", lambda config: None)
    monkeypatch.setattr(local, "run_ranks", lambda plans: Outcome(exit_code=0))
    assert main(["launch", "local", "c.yaml", "--nproc", "1"]) == 0
    (folder / "attempts.jsonl").unlink()
    assert main(["launch", "local", "c.yaml", "--nproc", "1"]) == 2


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
