"""A folder of Hugging Face's is imported once, and what has changed in it since is seen."""

import json
import os

import pytest

from lmscale.errors import ConfigError
from lmscale.files.reading import sha256_file
from lmscale.files.run_files import IMPORT_FILE
from lmscale.finetune.base import is_imported
from lmscale.runs.given_weights import Imported

HOUR = 3600


@pytest.fixture
def folders(tmp_path):
    """A folder of Hugging Face's of two files, an hour old, and where it was imported to."""
    folder, place = tmp_path / "bert", tmp_path / "bert-imported"
    folder.mkdir()
    place.mkdir()
    for name, text in (("config.json", "{}"), ("model.safetensors", "weights")):
        (folder / name).write_text(text)
    files = {each.name: sha256_file(each) for each in folder.iterdir()}
    imported = Imported(
        folder="bert", model_type="bert", transformers="", dtype="fp32", rows=8, files=files
    )
    (place / IMPORT_FILE).write_text(json.dumps(imported.to_json()))
    for each in folder.iterdir():
        age(each, place, hours=-1)
    return folder, place


def age(file, place, *, hours):
    """Let a file have been written so long after the import."""
    time = (place / IMPORT_FILE).stat().st_mtime + hours * HOUR
    os.utime(file, (time, time))


def test_an_import_is_taken_again_while_its_folder_is_the_same(folders, tmp_path):
    folder, place = folders
    assert is_imported(place, folder)
    age(folder / "model.safetensors", place, hours=1)  # copied, say
    assert is_imported(place, folder)
    assert not is_imported(tmp_path / "elsewhere", folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_was_written_anew_is_another_folder(folders, name):
    folder, place = folders
    (folder / name).write_text('{"a": 1}')
    age(folder / name, place, hours=1)
    with pytest.raises(ConfigError, match="is no import of .* as it is now"):
        is_imported(place, folder)


def test_a_folder_without_one_of_its_files_is_another_one(folders):
    folder, place = folders
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="is no import of"):
        is_imported(place, folder)
