"""A start that was refused leaves no folder that looks like a run."""

import pytest

from lmscale.files.locks import locked_file
from lmscale.runs.leftovers import LOCK_FILE, remove_leftovers


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    for name in ("logs/rank-00001.out", "heartbeats/rank-00000.json", "lease.json", LOCK_FILE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_what_every_start_makes_goes_and_so_does_an_empty_folder(folder, tmp_path):
    remove_leftovers(folder)
    assert not folder.exists()
    remove_leftovers(folder)  # as often as one likes
    folder.mkdir()
    remove_leftovers(folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", "slurm", "stop", "checkpoints"])
def test_a_folder_with_anything_else_stays_whole(folder, name):
    (folder / name).touch()
    before = sorted(folder.rglob("*"))
    remove_leftovers(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_another_process_holds_stays(folder):
    with locked_file(folder / LOCK_FILE):
        remove_leftovers(folder)
    assert (folder / "lease.json").exists()
