import time

import pytest

from lmscale.files import progress
from lmscale.files.progress import progress as telling

SOON = 60.0


@pytest.mark.parametrize(
    ("total", "unit", "line"),
    [(10, "bytes", "x: 4 of 10 bytes, 0 s so far"), (None, "", "x: 0 s so far")],
)
def test_a_piece_of_work_that_takes_long_is_not_silent(capsys, monkeypatch, total, unit, line):
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.01)
    deadline, said = time.monotonic() + SOON, ""
    with telling("x", total, unit) as advance:
        advance(4 if unit else 0)
        while line not in said.splitlines():
            assert time.monotonic() < deadline, said
            said += capsys.readouterr().err
    assert ("x: 4 bytes in 0." in capsys.readouterr().err) == bool(unit)


def test_short_work_without_a_unit_says_nothing(capsys):
    with telling("x"):
        pass
    assert capsys.readouterr().err == ""
