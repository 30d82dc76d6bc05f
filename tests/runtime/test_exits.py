import pytest

from lmscale.cli.main import main
from lmscale.config.exit_file import record_exit


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
