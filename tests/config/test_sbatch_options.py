"""What a command line passes on to sbatch, and what it may not."""

from __future__ import annotations

import pytest

from lmscale.config.sbatch_options import (
    OWN_OPTIONS,
    PROFILE_KEYS,
    decided_elsewhere,
    merge_options,
    parse_after,
    parse_asked,
    split_words,
)
from lmscale.errors import ConfigError


def problems_of(*words: str, **named: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_asked(named, words)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    "words", [("--qos=debug",), ("--qos", "debug"), ("-q", "debug"), ("-qdebug",), ("-q=debug",)]
)
def test_an_option_may_be_written_as_sbatch_takes_it(words):
    assert parse_asked({}, words).keys == {"qos": "debug"}


def test_what_is_a_key_of_the_profile_replaces_it_and_the_rest_is_passed_on():
    words = ["-A", "proj", "--hold", "--comment=three words", "-w", "n[1-2]", "--begin", "now+1h"]
    asked = parse_asked({"mail-user": "ada@x.org"}, [*words, "--dependency=afterok:7"])
    assert asked.keys == {"account": "proj"}
    assert asked.options == (
        *("--mail-user=ada@x.org", "--hold", "--comment=three words"),
        *("--nodelist=n[1-2]", "--begin=now+1h"),
    )
    assert asked.after == "afterok:7"


@pytest.mark.parametrize("option", sorted({*OWN_OPTIONS} - {*PROFILE_KEYS, "dependency"}))
def test_an_option_that_is_decided_elsewhere_is_refused_by_name_with_its_place(option):
    (problem,) = problems_of(f"--{option}=1")
    assert problem == (
        f"--{option}=1 cannot be passed on to sbatch: --{option} {OWN_OPTIONS[option]}."
    )


@pytest.mark.parametrize(
    ("short", "option"), [("requeu", "requeue"), ("sig", "signal"), ("open", "open-mode")]
)
def test_a_shortened_name_is_the_option_that_sbatch_takes_it_for(short, option):
    assert OWN_OPTIONS[option] in problems_of(f"--{short}")[0]


@pytest.mark.parametrize("option", ["gpus", "nodelist", "no-kill", "mem-per-gpu", "export"])
def test_an_option_of_its_own_is_no_shortened_one(option):
    assert decided_elsewhere(option) is None


def test_all_that_cannot_be_passed_on_is_told_together():
    told = problems_of("--array=1-3", "job.sh", "--comment=a\nb", "-o", "x", "--qos=b", qos="a")
    assert len(told) == 5
    assert "--array comes from" in told[0] and "'job.sh' is no" in told[1]
    assert told[2].startswith("-o cannot be passed on to sbatch: --output is the launcher's own")
    assert "--qos is given twice: a and b." in told[3] and "line break" in told[4]


def test_several_texts_are_split_as_a_shell_would():
    assert split_words(["--qos debug --comment='a b'", "-H"]) == [
        *("--qos", "debug", "--comment=a b", "-H")
    ]
    with pytest.raises(ConfigError, match="--sbatch: No closing quotation"):
        split_words(["--comment='a"])


@pytest.mark.parametrize(
    ("text", "dependency"),
    [
        ("4711", "afterany:4711"),
        ("4711_3", "afterany:4711_3"),
        ("afterok:12", "afterok:12"),
        ("afterok:12:13_4", "afterok:12:13_4"),
        ("after:12+5,afternotok:13", "after:12+5,afternotok:13"),
        ("afterok:12?afterany:13", "afterok:12?afterany:13"),
        ("singleton", "singleton"),
    ],
)
def test_a_dependency_is_a_job_or_a_condition_of_sbatch(text, dependency):
    assert parse_after(text) == dependency


@pytest.mark.parametrize(
    "text", ["", "job", "afterok", "afterok:", "okafter:1", "1,2", "afterok:1,after:2?after:3", "٣"]
)
def test_a_dependency_that_slurm_would_not_know_is_refused(text):
    with pytest.raises(ConfigError, match="--after .*give the number of a job"):
        parse_after(text)


def test_what_is_given_on_the_command_line_replaces_an_option_of_the_profile():
    both = merge_options(["--switches=1", "--comment=a"], ["--comment=b", "--hold"])
    assert both == ("--switches=1", "--comment=b", "--hold")
