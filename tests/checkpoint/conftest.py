"""One start of two ranks serves all tests of this folder."""

import json
import shutil
from pathlib import Path

import pytest
from forked_ranks import run_starts

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
