import pytest

from lmscale.config import parse_config
from lmscale.errors import ConfigError
from lmscale.runs.continuation import check_folder

CONFIG = parse_config("run: {name: a}")


def test_a_new_an_empty_and_the_runs_own_folder_are_fine(tmp_path):
    check_folder(tmp_path / "new" / "deep", CONFIG)
    check_folder(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("run: {name: a}")
    check_folder(tmp_path, CONFIG)


def test_what_a_launcher_or_a_kill_in_the_first_write_left_is_harmless(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "stop").write_text("")
    (tmp_path / ".config.yaml.123.tmp").write_text("run: {na")
    check_folder(tmp_path, CONFIG)


def test_the_log_of_checkpoints_elsewhere_does_not_lock_out_a_run_that_was_killed_early(tmp_path):
    (tmp_path / "commits.jsonl").write_text("")
    (tmp_path / "resumes.jsonl").write_text("")  # why it could take up none of them
    check_folder(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="its config.yaml is missing"):
        check_folder(tmp_path, CONFIG)


def test_a_damaged_config_does_not_lock_a_run_out(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: a}\nold_section: {}")
    check_folder(tmp_path, CONFIG)


def test_another_runs_folder_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: b}")
    with pytest.raises(ConfigError, match="is the folder of the run 'b', not of 'a'"):
        check_folder(tmp_path, CONFIG)


def test_foreign_files_and_a_file_in_the_way_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds no run \(found thesis.tex\)"):
        check_folder(tmp_path, CONFIG)
    for place in ("thesis.tex", "thesis.tex/run"):
        with pytest.raises(
            ConfigError, match="thesis.tex is a file; run.folder must name a folder"
        ):
            check_folder(tmp_path / place, CONFIG)
    with pytest.raises(ConfigError, match="cannot be the run's folder: .*name too long"):
        check_folder(tmp_path / ("n" * 300), CONFIG)


def test_a_lost_config_of_a_run_is_told_with_the_copy_to_take(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "attempts.jsonl").write_text("")
    with pytest.raises(ConfigError, match="its config.yaml is missing.* Copy it back from where"):
        check_folder(tmp_path, CONFIG)
    for name in ("20260101-000000-train", "20260102-000000-train", "20260103-000000-evaluate"):
        (tmp_path / "slurm" / name).mkdir(parents=True)
        (tmp_path / "slurm" / name / "config.yaml").write_text("run: {name: a}")
    copy = tmp_path / "slurm/20260102-000000-train/config.yaml"
    with pytest.raises(ConfigError) as caught:
        check_folder(tmp_path, CONFIG)
    assert f"`cp {copy} {tmp_path}/config.yaml`" in str(caught.value)
