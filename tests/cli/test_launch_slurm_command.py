"""``lmscale launch slurm`` as a person types it, up to where Slurm would come in."""

from __future__ import annotations

import json
import subprocess

import pytest

from lmscale.cli.main import main
from lmscale.config.assets import find_assets

LLAMA = str(find_assets("configs") / "llama_7b.yaml")
EXAMPLE = ("launch", "slurm", LLAMA, "--cluster", "example")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Not in a clone, and on a machine without Slurm and without data."""
    (tmp_path / "here").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def _pretend_slurm(folder):
    """A queue that is empty, and an sbatch that would take everything."""
    for name, text in (
        ("squeue", "#!/bin/sh\n"),
        ("sbatch", "#!/bin/sh\n/bin/cat >/dev/null\necho 'sbatch: Job 1 to start' >&2\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def test_a_dry_run_prints_the_script_and_nothing_else(tmp_path, capfd):
    assert main([*EXAMPLE, "--nodes", "8", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("#!/bin/bash\n") and "#SBATCH --nodes=8\n" in out and err == ""
    checked = subprocess.run(["/bin/bash", "-n"], input=out, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--job", "evaluate"),
        ("--job", "corpus", "--tasks", "8"),
        ("--job", "shards", "--tasks", "8"),
        ("--preflight-only", "--nodes", "4"),
        ("--nodes", "4-8", "--time", "2:00:00", "--chain", "3"),
        ("--array", "engine.optimizer.lr=1e-4,3e-4", "--sweep", "rates"),
    ],
)
def test_every_kind_of_job_can_be_shown_without_slurm(capfd, arguments):
    assert main([*EXAMPLE, *arguments, "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("#!/bin/bash\n")


def test_what_part_of_a_range_is_unused_is_told_beside_the_script(capfd):
    assert main([*EXAMPLE, "--nodes", "7-9", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert "#SBATCH --nodes=8\n" in out
    assert "warning: --nodes 7-9: 1,024 windows a step cannot be shared evenly" in err


def test_nodes_that_cannot_be_used_are_a_problem_and_no_traceback(capfd):
    assert main([*EXAMPLE, "--nodes", "3", "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "cannot be dealt evenly to 24 ranks" in err


def test_an_unknown_profile_and_an_unknown_key_are_told_together(capfd):
    arguments = ["--cluster", "exampel", "--set", "train.step=1", "--dry-run"]
    assert main(["launch", "slurm", LLAMA, *arguments]) == 2
    err = capfd.readouterr().err
    assert "Did you mean example?" in err and "Did you mean steps?" in err


@pytest.mark.parametrize("flag", ["--check", "--json"])
def test_without_slurm_everything_else_is_still_told(tmp_path, capfd, flag):
    assert main(["launch", "slurm", LLAMA, "--cluster", "lab", flag]) == 2
    err = capfd.readouterr().err
    assert "squeue: there is no such command on this machine" in err
    assert "data/llama/tokenizer: there is no tokenizer here" in err
    assert "stream.sources.web" in err
    assert list((tmp_path / "here").iterdir()) == []  # nothing is written before all is well


def test_a_passed_check_can_be_read_by_a_program(tmp_path, capfd):
    _pretend_slurm(tmp_path / "bin")
    arguments = ["--cluster", "lab", "--preflight-only", "--check", "--json"]
    assert main(["launch", "slurm", LLAMA, *arguments]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["job"].startswith("llama_7b-preflight-") and found["warnings"] == []
    assert "Slurm would take it: Job 1 to start" in found["passed"]


def test_the_help_names_every_kind_of_job(capfd):
    assert main(["launch", "slurm", "--help"]) == 0
    out = capfd.readouterr().out
    for word in ("--cluster", "--nodes", "--dry-run", "--check", "--array", "evaluate", "corpus"):
        assert word in out


def test_what_stands_behind_two_dashes_goes_to_sbatch_and_a_stray_word_does_not(capfd):
    words = ["--mail-type", "END", "--sbatch", "--hold", "--dry-run"]
    assert main([*EXAMPLE, "--nodes", "8", *words, "--", "--qos=debug", "-A", "proj"]) == 0
    script = capfd.readouterr().out
    for line in ("--mail-type=END", "--hold", "--qos=debug", "--account=proj"):
        assert f"#SBATCH {line}\n" in script
    assert main([*EXAMPLE, "more.yaml", "--nodes", "8", "--dry-run"]) == 2
    assert "'more.yaml' is no option for sbatch" in capfd.readouterr().err


def test_a_dry_run_of_all_prints_every_script_in_order_each_behind_the_one_before(capfd):
    assert main([*EXAMPLE, "--nodes", "8", "--job", "all", "--tasks", "4", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    scripts = [f"#!/bin/bash\n{text}" for text in out.split("#!/bin/bash\n")[1:]]
    names = ["corpus of", "tokenizer of", "shards of", "llama_7b: training"]
    waits = [[], ["CORPUS"], ["TOKENIZER"], ["SHARDS"]]
    for script, name, before in zip(scripts, names, waits, strict=True):
        assert name in script.splitlines()[2]
        found = [line for line in script.splitlines() if line.startswith("#SBATCH --dependency")]
        assert found == [f"#SBATCH --dependency=afterok:JOB_OF_{kind}" for kind in before]
        checked = subprocess.run(["/bin/bash", "-n"], input=script, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    assert "#SBATCH --nodes=8\n" in scripts[3] and "#SBATCH --gres=gpu:8\n" in scripts[3]
    assert "no file matches" in err and "So 4 tasks." in err


@pytest.mark.parametrize("flag", ["--dry-run", "--check"])
def test_shards_that_the_pipeline_does_not_build_are_told_where_a_training_reads_them(
    tmp_path, capfd, flag
):
    _pretend_slurm(tmp_path / "bin")
    words = [*EXAMPLE, "--nodes", "8", "--job", "all", flag]
    main(words)
    assert "not below shards.folder" not in capfd.readouterr().err
    main([*words, "--set", "shards.folder=other/shards"])
    (line,) = [each for each in capfd.readouterr().err.splitlines() if "not below" in each]
    here = tmp_path / "here"
    assert line.startswith(
        f"warning: train: stream.sources.web ({here}/data/llama/shards/web/train), "
    )
    assert f"and 1 more: not below shards.folder = {here}/other/shards, where" in line


def test_what_is_wrong_with_several_stages_is_told_once_and_with_all_else(capfd):
    assert main([*EXAMPLE, "--nodes", "8", "--job", "all", "--check"]) == 2
    err = capfd.readouterr().err
    assert err.count("corpus.sources.web.inputs: no file matches") == 1
    assert err.count("squeue: there is no such command on this machine") == 1


def test_a_sweep_of_what_the_data_is_made_by_is_no_pipeline(capfd):
    sweep = ["--array", "tokenizer.vocab_size=300,400", "--array", "train.steps=3,4"]
    assert main([*EXAMPLE, "--nodes", "8", "--job", "all", *sweep, "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert err.count("error: ") == 1 and out == ""
    assert "--array tokenizer.vocab_size: --job all makes the data once" in err


def test_data_that_one_command_can_make_is_told_with_that_command(capfd):
    assert main([*EXAMPLE, "--nodes", "8", "--check"]) == 2
    assert "With --job all the command makes the data as well" in capfd.readouterr().err
