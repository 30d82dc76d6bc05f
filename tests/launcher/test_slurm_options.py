"""Options of the command line beat the profile, and are frozen into what is submitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launcher.checks import check
from launcher.options import LaunchOptions
from launcher.submit import prepare, submit
from lmscale.config.cluster import load_cluster
from lmscale.errors import ConfigError
from lmscale.files.run_files import read_submissions


def with_profile(options: LaunchOptions, **changes) -> LaunchOptions:
    file = Path(options.cluster)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return options


def directives(options: LaunchOptions) -> list[str]:
    script = prepare(options).script.splitlines()
    return [line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH ")]


def test_options_beat_the_profile_and_stay_with_the_frozen_job(options, slurm):
    profile = {"account": "a", "qos": "long", "exclude": ["n9"]}
    with_profile(options, **profile, sbatch_options=["--comment=x"])
    changed = replace(
        options,
        asked={"account": "b", "exclude": "n[1-2]", "nodelist": "n5", "mail-type": "END"},
        sbatch=("--qos=debug --comment=y",),
        words=("--hold",),
        after="afterok:12",
    )
    found = directives(changed)
    for line in (
        *("--account=b", "--qos=debug", "--exclude=n9,n[1-2]", "--nodelist=n5"),
        *("--mail-type=END", "--comment=y", "--hold", "--dependency=afterok:12"),
        "--kill-on-invalid-dep=yes",
    ):
        assert line in found
    assert "--comment=x" not in found and "--qos=long" not in found
    submission = submit(prepare(changed))
    frozen = load_cluster(Path(submission.folder) / "cluster.yaml")
    assert (frozen.account, frozen.qos) == ("b", "debug") and "--hold" in frozen.sbatch_options
    (row,) = read_submissions(Path(submission.folder).parent)
    assert row["after"] == "afterok:12"


def test_what_is_given_is_checked_as_the_profile_is_and_told_with_all_else(options):
    changed = replace(
        options, asked={"qos": 'a"b'}, words=("--mail-type=it's", "--signal=9"), after="x"
    )
    with pytest.raises(ConfigError) as caught:
        prepare(replace(changed, overrides=("train.step=3",)))
    told = "\n".join(caught.value.problems)
    for words in (
        "train.step: unknown key",
        "--after x: give the number of a job",
        "--signal is the profile's key signal_seconds",
        "--mail-type=it's",
    ):
        assert words in told
    with pytest.raises(ConfigError, match="with --qos: qos = 'a\"b': it holds"):
        prepare(replace(options, asked={"qos": 'a"b'}))


def test_jobs_of_data_ask_for_what_the_section_data_says_and_others_do_not(options):
    data = {"partition": "cpu", "cpus_per_task": 6, "memory": "9G", "time": "3:00:00", "qos": ""}
    with_profile(options, partition="gpu", qos="long", constraint="h100", data=data)
    lines = ("--partition=cpu", "--cpus-per-task=6", "--mem=9G", "--time=3:00:00")
    for kind in ("corpus", "tokenizer", "shards"):
        found = directives(replace(options, kind=kind, nodes="1"))
        assert {*lines, "--constraint=h100"} <= {*found} and "--qos=long" not in found
    found = directives(options)
    assert "--partition=gpu" in found and "--qos=long" in found and not {*lines} & {*found}
    own = replace(options, kind="shards", nodes="1", asked={"partition": "big"})
    assert "--partition=big" in directives(own)


def test_no_option_keeps_the_scripts_environment_from_its_ranks(options):
    """sbatch --export=NONE has srun hand nothing over, not even where the ranks meet."""
    for kind in ("train", "evaluate", "corpus", "tokenizer", "preflight"):
        own = replace(options, nodes="1", kind=kind, words=("--export=NONE",))
        *_, script = prepare(own).script.partition("unset SLURM_EXPORT_ENV")
        assert "srun" in script and "PYTHONPATH" in script, kind


def test_a_tokenizers_job_needs_the_corpus_and_its_own_folder_on_all_nodes(
    options, slurm, tmp_path
):
    with_profile(options, shared=[str(tmp_path / "disk")])
    places = (f"corpus.folder={tmp_path}/disk/c", f"tokenizer.folder={tmp_path}/local/t")
    own = replace(options, nodes="1", kind="tokenizer", overrides=places)
    told = [p for p in check(prepare(own)).problems if "is not below a folder" in p]
    assert len(told) == 1 and told[0].startswith(f"{tmp_path}/local/t is not below")


def test_behind_another_job_missing_data_is_a_warning(options, slurm, tmp_path):
    changed = replace(options, overrides=(f"stream.sources.a.shards={tmp_path}/none",))
    assert "holds no manifest.json" in check(prepare(changed)).problems[0]
    findings = check(prepare(replace(changed, after="12")))
    assert findings.problems == []
    assert "looked at again when the job begins (afterany:12)" in findings.warnings[0]


def test_a_chain_waits_for_another_job_as_well(options):
    found = directives(replace(options, chain=3, after="12"))
    assert "--dependency=singleton,afterany:12" in found
    with pytest.raises(ConfigError, match="cannot join that with a question mark"):
        prepare(replace(options, chain=3, after="after:1?after:2"))
