"""Whether the shards of a dataset are there, and what is said where they are not."""

import pytest

from lmscale.errors import DataError
from lmscale.files.shard_files import explain_missing
from lmscale.shards.manifest import load_manifest


def test_a_missing_heldout_part_is_told_by_what_lies_beside_it(tmp_path):
    heldout = tmp_path / "s" / "heldout"
    with pytest.raises(DataError, match="no dataset here. Build it with `lmscale shards build"):
        load_manifest(heldout)
    (tmp_path / "s" / "train").mkdir(parents=True)
    (tmp_path / "s" / "train" / "manifest.json").touch()
    with pytest.raises(DataError, match="no document was held out. Raise corpus.heldout_fraction"):
        load_manifest(heldout)
    (tmp_path / "s" / ".heldout.building").mkdir()
    assert explain_missing(heldout).startswith("Build it with")
    assert explain_missing(tmp_path / "other").startswith("Build it with")
