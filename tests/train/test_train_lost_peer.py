"""Whose connection was lost is not guessed: another rank's, or another one's, which is a bug."""

from types import SimpleNamespace

import pytest

from lmscale.config import parse_config
from lmscale.errors import TransientError
from lmscale.ranks.ranks import Ranks
from lmscale.train import session

CLOSED = "pair.cc:534 Connection closed by peer [10.0.0.2]:1234"


@pytest.mark.parametrize(
    ("error", "world_size", "ends_as"),
    [
        (RuntimeError(CLOSED), 2, TransientError),
        (RuntimeError(CLOSED), 1, RuntimeError),
        (BrokenPipeError(32, "Broken pipe"), 2, BrokenPipeError),
        (ConnectionResetError(104, "Connection reset by peer"), 2, ConnectionResetError),
    ],
)
def test_only_what_torch_says_of_a_lost_rank_is_told_as_one(
    error, world_size, ends_as, monkeypatch
):
    def open_session(*_):
        raise error

    monkeypatch.setattr(session, "open_session", open_session)
    stop = SimpleNamespace(wait=lambda seconds: None)
    config, ranks = parse_config("run: {name: a}"), Ranks(rank=0, world_size=world_size)
    with pytest.raises(ends_as) as caught:
        session.train_run(config, ranks, stop, began_at=0.0)
    assert type(caught.value) is ends_as
