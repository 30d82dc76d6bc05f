"""What stands in a file's place is read, or told at once, whatever it is."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import DataError, TransientError
from lmscale.files.reading import open_plain, read_plain, reading, seal, unseal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a loop", "nothing"])
def test_what_is_no_plain_file_is_told_at_once(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a loop":
        path.symlink_to(path)
    with pytest.raises(DataError) as caught, reading(path, "Delete it."):
        read_plain(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("Delete it.")
    told = {"a loop": "symbolic links", "nothing": "no such file"}.get(kind, f"{kind} stands")
    assert told in str(caught.value)


def test_a_disk_that_fails_may_pass_and_a_file_that_is_missing_has_its_own_advice(tmp_path):
    with pytest.raises(TransientError), reading(tmp_path, "Delete it."):
        raise OSError(5, "Input/output error")
    with (
        pytest.raises(DataError, match=r"x: build it first\.$"),
        reading(tmp_path / "x", "Delete it.", missing="build it first."),
    ):
        open_plain(tmp_path / "x")


@settings(max_examples=60, deadline=None)
@given(tree=st.dictionaries(st.text().filter(lambda key: key != "sha256"), JSON, max_size=4))
def test_what_was_sealed_comes_back(tree):
    assert unseal(seal(tree)) == tree


@settings(max_examples=300, deadline=None)
@given(data=st.data(), tree=st.dictionaries(st.sampled_from("abc"), JSON, max_size=3))
def test_no_other_bytes_give_another_object(data, tree):
    """A space more or less is the same object; whatever else is not what was written is refused."""
    content = bytearray(seal({"kind": "x", **tree}))
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    try:
        assert unseal(bytes(content)) == {"kind": "x", **tree}
    except ValueError:
        pass
