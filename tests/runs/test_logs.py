import logging
import warnings

import pytest

from lmscale.errors import DataError
from lmscale.ranks.ranks import Ranks
from lmscale.runs.logs import close_logging, log_path, setup_logging

SECOND = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)


@pytest.fixture(autouse=True)
def _quiet_again():
    yield
    close_logging()


def test_each_rank_has_its_file_and_rank_0_the_terminal(tmp_path, capsys):
    setup_logging(tmp_path, SECOND)
    logging.getLogger("lmscale.train").info("from one")
    setup_logging(tmp_path, Ranks())
    logging.getLogger("lmscale.train").info("from [zero]")
    assert "INFO lmscale.train: from one" in log_path(tmp_path, 1).read_text()
    assert log_path(tmp_path, 0).read_text().count("\n") == 1
    assert log_path(tmp_path, 0).name == "rank-00000.log"
    terminal = capsys.readouterr().err
    assert "from [zero]" in terminal and "from one" not in terminal


def test_a_restart_appends(tmp_path):
    for line in ("first", "second"):
        setup_logging(tmp_path, SECOND)
        logging.getLogger("lmscale").info(line)
    assert [line.split()[-1] for line in log_path(tmp_path, 1).read_text().splitlines()] == [
        "first",
        "second",
    ]


def test_warnings_are_kept_in_the_file_and_others_chatter_is_not(tmp_path, capsys):
    setup_logging(tmp_path, Ranks())
    logging.getLogger("other").info("chatter")
    logging.getLogger("other").warning("attention")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("beware", stacklevel=1)
        logging.captureWarnings(False)
    text = log_path(tmp_path, 0).read_text()
    assert "attention" in text and "beware" in text and "chatter" not in text
    terminal = capsys.readouterr().err
    assert "attention" in terminal and "beware" not in terminal


def test_a_log_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "x.txt").write_text("")
    for place in ("x.txt", "x.txt/run"):
        with pytest.raises(DataError, match="A file stands where a folder must be"):
            setup_logging(tmp_path / place, Ranks())
