from pathlib import Path

import pytest

from lmscale.cli.plan_check import calibrate, check
from lmscale.errors import ConfigError


def test_all_mistakes_of_a_calibration_are_told_before_anything_is_measured(tmp_path):
    out = tmp_path / "nowhere" / "cpu.txt"
    with pytest.raises(ConfigError) as caught:
        calibrate(out=out, precision="fp8", clock="sun", steps=1, force=False)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        *("--precision", "--clock", "--out", "--out")
    ]


def test_a_folder_without_a_run_cannot_be_checked(tmp_path):
    with pytest.raises(ConfigError):
        check(run=Path(tmp_path), gpu=None, json_=False)
