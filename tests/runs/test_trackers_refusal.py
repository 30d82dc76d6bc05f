"""A row of the curves that is refused: rank 0 may not end alone in the middle of common work."""

import errno

import pytest

from lmscale.errors import DataError, LmscaleError, NoSpaceError, TransientError
from lmscale.files.jsonl import read_rows
from lmscale.runs.trackers import METRICS_FILE, open_trackers

FAILURES = {
    errno.ENOSPC: NoSpaceError,
    errno.EACCES: DataError,
    errno.ESTALE: TransientError,
}


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["metrics", "events"])
def test_whatever_refuses_a_row_is_handed_on_where_somebody_asked_for_it(
    tmp_path, monkeypatch, number, where
):
    def refuse(*arguments, **keywords):
        raise OSError(number, "refused, says the test")

    refused: list[LmscaleError] = []
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"loss": 0.5})
        with monkeypatch.context() as patch:
            if where == "events":
                patch.setattr(trackers._events, "add_scalar", refuse)
            else:
                patch.setattr("lmscale.files.jsonl._write_whole", refuse)
            with pytest.raises(FAILURES[number]):
                trackers.log(2, {"loss": 0.5})
            trackers.on_refusal = refused.append
            trackers.log(3, {"loss": 0.5})
    assert [type(error) for error in refused] == [FAILURES[number]]
    assert read_rows(tmp_path / METRICS_FILE)[0]["step"] == 1
