from pathlib import Path

import pytest

from lmscale.cli.main import main
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan demo --gpu cpu --html {folder}.html", "it is a folder"),
        ("plan demo --gpu cpu --html {config}", "ends in .html"),
        ("plan demo --gpu cpu --like {folder}", "is not a run's folder"),
        ("plan demo --gpu=", "not in the table of devices"),
        ("plan ladder ladder_cpu --svg {folder}/none/a.svg", "there is no folder"),
        ("plan ladder ladder_cpu --out {folder}/a.yaml --sizes 1e400,1M,2M", "such as 300k"),
        ("plan calibrate --out {folder}.yaml --force", "it is a folder"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(tmp_path, capsys, words, said):
    folder, config = tmp_path / "a", tmp_path / "c.yaml"
    for place in (folder, tmp_path / "a.html", tmp_path / "a.yaml"):
        place.mkdir()
    config.write_text("run: {name: c}\n")
    given = words.format(folder=folder, config=config).split()
    assert main(given) == 2
    problem = capsys.readouterr().err
    assert said in problem and len(problem.splitlines()) == 1
    assert config.read_text() == "run: {name: c}\n" and not [*folder.iterdir()]
