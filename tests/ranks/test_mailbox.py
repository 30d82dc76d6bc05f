"""Notes between ranks beside the training group: real ranks, started by us and by torchrun."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from forked_processes import forking
from forked_ranks import run_starts

from lmscale.errors import TransientError
from lmscale.ranks.mailbox import PIECE_BYTES, Mailbox, open_mailbox
from lmscale.ranks.ranks import Ranks

NEVER = threading.Event()


def start(folder, number):
    """What each rank does: rank 0 gathers a note of every other, and answers all of them."""
    from forked_ranks import one_group

    from lmscale.ranks.collectives import gather_json

    with one_group() as ranks:
        answers = []
        for round_number in range(2):  # a second mailbox must not find the first one's notes
            mailbox = open_mailbox(ranks)
            if ranks.is_first:
                others = range(1, ranks.world_size)
                heard = [mailbox.read(f"from {rank}", given_up=NEVER) for rank in others]
                mailbox.post("answer", [round_number, *heard])
            else:
                mailbox.post(f"from {ranks.rank}", {"rank": ranks.rank, "round": round_number})
            answers.append(mailbox.read("answer", given_up=NEVER))
        seen = gather_json(answers)
    if ranks.is_first:
        (folder / f"saw-{ranks.world_size}.json").write_text(json.dumps(seen))


def expected(world_size):
    answers = [
        [number, *({"rank": rank, "round": number} for rank in range(1, world_size))]
        for number in range(2)
    ]
    return [answers] * world_size


@pytest.mark.ranks
@pytest.mark.slow
def test_every_rank_reads_what_rank_0_makes_of_all_their_notes(tmp_path):
    run_starts(Path(__file__), tmp_path, (1, 4))
    for world_size in (1, 4):
        seen = json.loads((tmp_path / f"saw-{world_size}.json").read_text())
        assert seen == expected(world_size)


@pytest.mark.ranks
@pytest.mark.slow
def test_the_same_under_torchrun_whose_agent_holds_the_store(tmp_path):
    script = f"import sys; from pathlib import Path; sys.path[:0] = {sys.path!r}\n"
    script += "import test_mailbox; test_mailbox.start(Path(sys.argv[1]), 0)\n"
    rank = tmp_path / "mailbox_rank.py"  # for which torchrun's processes find a fork
    rank.write_text(script)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [sys.executable, *command, str(rank), str(tmp_path)],
        env={**os.environ, **forking(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout
    assert json.loads((tmp_path / "saw-2.json").read_text()) == expected(2)


def test_a_rank_that_is_alone_needs_no_store_and_reads_its_own_notes():
    mailbox = open_mailbox(Ranks())
    mailbox.post("a", [1, None, "x"])
    assert mailbox.read("a", given_up=NEVER) == [1, None, "x"]


def test_who_has_given_up_waits_no_longer():
    mailbox = open_mailbox(Ranks())
    given_up = threading.Event()
    read = []
    waiting = threading.Thread(target=lambda: read.append(mailbox.read("a", given_up=given_up)))
    waiting.start()
    given_up.set()
    waiting.join(timeout=30)
    assert read == [None]


def test_a_note_that_was_removed_is_not_there_any_more():
    mailbox = open_mailbox(Ranks())
    mailbox.post("a", 1)
    mailbox.remove("a")
    given_up = threading.Event()
    given_up.set()
    assert mailbox.read("a", given_up=given_up) is None


def host_and_clients(count):
    """A store of its own, and connections to it."""
    host = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return host, [
        torch.distributed.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
        for _ in range(count)
    ]


def test_a_note_of_any_size_arrives_whole_and_leaves_the_connection_open():
    host, (own, other) = host_and_clients(2)
    writer, reader = Mailbox(own), Mailbox(other)
    num_keys = host.num_keys()
    # The store takes 8 MiB in one value; what is as long as one piece, and a byte more; in bytes
    # beyond ASCII.
    notes = ["x" * (9 << 20), *("x" * (PIECE_BYTES - 2 + more) for more in (-1, 0, 1)), "ä€" * 999]
    for number, note in enumerate(notes):
        writer.post(f"{number}", note)
        assert reader.read(f"{number}", given_up=NEVER) == note
    assert host.num_keys() > num_keys
    for number in range(len(notes)):  # by who has read it, and by who posted it
        (reader, writer)[number % 2].remove(f"{number}")
    assert host.num_keys() == num_keys


def test_a_note_is_there_only_when_all_its_pieces_are():
    class Store:
        def __init__(self):
            self.names = []

        def set(self, name, value):
            self.names.append(name)

    store = Store()
    Mailbox(store).post("a", "x" * 3 * PIECE_BYTES)
    assert len(store.names) == 4 and store.names.index("a") == 3


def test_a_store_whose_host_has_gone_is_told_with_its_address(monkeypatch):
    host = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=True
    )
    client = torch.distributed.TCPStore(
        "127.0.0.1", host.port, is_master=False, wait_for_workers=False
    )
    mailbox = Mailbox(client)
    mailbox.post("a", 1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(host.port))
    port = host.port
    del host
    with pytest.raises(TransientError, match=f"127.0.0.1:{port} does not answer"):
        for _ in range(100):  # the first of them may still go into the socket's buffer
            mailbox.post("a", 1)
