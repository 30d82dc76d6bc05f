"""The names of checkpoints are read back as what they were written for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmscale.files.locations import CheckpointPlace, find_checkpoint
from lmscale.files.run_files import STEP_FOLDER, step_name


@given(step=st.integers(0, 10**12))
def test_the_name_of_a_step_is_read_back(step):
    match = STEP_FOLDER.fullmatch(step_name(step))
    assert match is not None
    assert int(match[1]) == step


def test_a_checkpoint_that_is_alone_is_found_by_its_absolute_name(tmp_path):
    place = CheckpointPlace(tmp_path / "copies", 500, is_alone=True)
    place.own_folder.mkdir(parents=True)
    assert place.own_folder == tmp_path / "copies" / "step-000000500"
    assert find_checkpoint(place.absolute, beside=tmp_path) == place
