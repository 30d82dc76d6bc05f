import pytest

from lmscale.cli.main import main
from lmscale.errors import CorruptionError, NoSpaceError
from lmscale.ranks.exits import record_exit, record_fault


def test_a_rank_leaves_its_exit_code_in_the_folder_that_the_batch_script_names(tmp_path):
    record_exit(75, {"LMSCALE_EXITS": str(tmp_path), "RANK": "12"})
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00012"]
    assert (tmp_path / "rank-00012").read_text().strip() == "75"


def test_without_that_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_exit(0, {"RANK": "1"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_changes_nothing_about_the_end(tmp_path, capfd):
    record_exit(1, {"LMSCALE_EXITS": str(tmp_path / "gone")})
    assert "the exit code 1 could not be written" in capfd.readouterr().err


@pytest.fixture
def exit_of(tmp_path, monkeypatch):
    """The code that a command returns or dies with, and the one in the file."""
    monkeypatch.setenv("LMSCALE_EXITS", str(tmp_path))
    monkeypatch.setenv("RANK", "0")

    def run(*arguments):
        code = main(arguments)
        return code, int((tmp_path / "rank-00000").read_text())

    run.file = tmp_path / "rank-00000"
    return run


def test_every_regular_end_of_a_command_is_recorded(exit_of):
    assert exit_of("--version") == (0, 0)
    assert exit_of("train", "/nowhere.yaml") == (2, 2)
    assert exit_of("train") == (2, 2)  # a usage error


def fail(error):
    def command(*arguments, **settings):
        raise error

    return command


def test_a_bug_is_recorded_as_1_and_keeps_its_traceback(exit_of, monkeypatch):
    monkeypatch.setattr("lmscale.cli.app.app", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        exit_of()
    assert exit_of.file.read_text().strip() == "1"


def test_an_interrupt_is_recorded_as_130(exit_of, monkeypatch):
    monkeypatch.setattr("lmscale.cli.app.app", fail(KeyboardInterrupt()))
    assert exit_of() == (130, 130)


def test_a_fault_is_told_in_a_file_of_its_own_beside_the_code(exit_of, monkeypatch):
    fault = exit_of.file.with_name("fault-00000")
    monkeypatch.setattr("lmscale.cli.app.app", fail(NoSpaceError("No space is left.")))
    assert exit_of() == (75, 75)
    assert fault.read_text() == "disk full\n"
    error = CorruptionError("long", summary="rank 3 on n2 differs", bad_nodes={"n2": "rank\n3"})
    monkeypatch.setattr("lmscale.cli.app.app", fail(error))
    assert exit_of() == (75, 75)
    assert fault.read_text() == "rank 3 on n2 differs\nn2\trank 3\n"


def test_every_other_end_tells_of_no_fault(exit_of):
    assert exit_of("train", "/nowhere.yaml") == (2, 2)
    assert [path.name for path in exit_of.file.parent.iterdir()] == ["rank-00000"]


def test_a_fault_that_cannot_be_written_changes_nothing_about_the_end(tmp_path, capfd):
    record_fault("disk full", {}, {"LMSCALE_EXITS": str(tmp_path / "gone")})
    assert "the fault 'disk full' could not be written" in capfd.readouterr().err
