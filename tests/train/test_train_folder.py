"""Who may train in a folder."""

from __future__ import annotations

import pytest

from lmscale.config import parse_config
from lmscale.errors import ConfigError
from lmscale.runtime.ranks import Ranks
from lmscale.train import folder as run_folder
from lmscale.train.folder import claim_folder, freeze_run


def configure(tmp_path, name="one"):
    return parse_config(f"run: {{name: {name}, folder: {tmp_path / 'run'}}}")


def test_two_trainings_cannot_hold_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.01)
    config = configure(tmp_path)
    with claim_folder(config, Ranks()):
        with pytest.raises(ConfigError, match="another `lmscale train` is running in this folder"):
            with claim_folder(config, Ranks()):
                pass
    with claim_folder(config, Ranks()):
        pass  # free again


def test_a_folder_keeps_its_frozen_config_while_another_run_is_refused(tmp_path):
    config = configure(tmp_path)
    with claim_folder(config, Ranks()):
        freeze_run(config)
    before = (config.folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="is the folder of the run 'one', not of 'two'"):
        with claim_folder(configure(tmp_path, "two"), Ranks()):
            pass
    assert (config.folder / "config.yaml").read_bytes() == before


def test_a_start_killed_inside_its_first_write_leaves_a_usable_folder(tmp_path):
    config = configure(tmp_path)
    config.folder.mkdir()
    (config.folder / ".config.yaml.123.tmp").write_text("run:")
    with claim_folder(config, Ranks()):
        pass
