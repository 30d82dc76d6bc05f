"""One start of two ranks serves all tests of this folder."""

import json
import shutil
from pathlib import Path

import pytest
from forked_ranks import run_starts
from handmade_checkpoints import place_at
from s3_server import open_s3

from lmscale.files import remote

HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def saved(tiny_data, tmp_path_factory):
    """What two ranks saw (saving_ranks.py), and the folder that holds their runs."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(HERE / "saving_ranks.py", folder, (2,))
    return json.loads((folder / "saw.json").read_text()), folder


@pytest.fixture
def checkpoints(saved, tmp_path):
    """A copy of real checkpoints of steps 2, 4 and 6, to be damaged."""
    _, folder = saved
    return Path(shutil.copytree(folder / "specimen" / "checkpoints", tmp_path / "checkpoints"))


@pytest.fixture(scope="module")
def s3():
    """The address of a server with two buckets, of which the environment knows as well."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with open_s3("runs", "others") as address:
        yield address


@pytest.fixture
def client(s3):
    """Another way to the same server, past fsspec."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{s3[0]}:{s3[1]}")
    yield client
    client.close()


@pytest.fixture
def place(s3, tmp_path, monkeypatch):
    """An empty place in the first bucket."""
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.001)
    return place_at(f"s3://runs/{tmp_path.name}", tmp_path)
