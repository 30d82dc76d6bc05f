"""Cluster profiles: what may stand in one, and how a mistake is told."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lmscale.config import dump_config
from lmscale.config.cluster import (
    change_cluster,
    find_profile,
    known_profiles,
    load_cluster,
    parse_cluster,
)
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.config.cluster_rules import parse_time
from lmscale.config.sbatch_options import OWN_OPTIONS
from lmscale.errors import ConfigError

SMALL = "time: 1:00:00\ntasks_per_node: 2\n"
PROFILES = sorted(known_profiles())


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_cluster(text)
    return list(caught.value.problems)


def test_the_promised_profiles_are_there():
    assert set(PROFILES) >= {"example", "lab", "h100-infiniband", "aws-efa", "gcp-tcpx"}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_loads_and_is_the_same_after_it_was_written_out(name):
    cluster = load_cluster(name)
    assert parse_cluster(dump_config(cluster)) == cluster
    assert cluster.description


@pytest.mark.parametrize("name", ["h100-infiniband", "aws-efa", "gcp-tcpx"])
def test_a_profile_that_nobody_has_run_says_so(name):
    assert "not run by us" in load_cluster(name).description


def test_the_example_explains_every_key():
    text = find_profile("example").read_text(encoding="utf-8")

    def check(tree: dict, model: type[BaseModel]) -> None:
        assert set(tree) == set(model.model_fields)
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(tree[name], field.annotation)

    check(yaml.safe_load(text), ClusterConfig)


def test_an_unknown_profile_lists_the_known_ones_and_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        load_cluster("exampel")
    assert "Did you mean example?" in str(caught.value)
    assert f"Known: {', '.join(PROFILES)}." in str(caught.value)


@pytest.mark.parametrize("text", ["./mine.yaml", "mine.yaml", "/nowhere/mine"])
def test_a_path_without_a_file_is_told_as_a_path(text):
    with pytest.raises(ConfigError, match="there is no such cluster profile"):
        load_cluster(text)


def test_a_profile_may_be_given_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text(SMALL)
    assert load_cluster(tmp_path / "mine.yaml").ranks_per_node == 2


def test_all_problems_of_a_profile_are_told_together():
    found = problems_of(
        "time: 0:01:00\n"
        "chain: 3\n"
        "gpu_type: h100\n"
        "account: 'a\"b'\n"
        "memory_per_node: lots\n"
        "sbatch_options: [--nodes=3, -A x, --mail-type=END]\n"
        "variables: {RANK: 1, 'a b': x, SLURM_JOB_ID: 7}\n"
        "container: {kind: pyxis}\n"
        "scratch: tmp\n"
    )
    assert len(found) == 15
    told = "\n".join(found)
    for words in (
        "signal_seconds = 300 is not less than time = 0:01:00 (60 s)",
        "tasks_per_node is needed where gpus_per_node is 0",
        "chain = 3 is for clusters that forbid requeue; set requeue: false",
        "gpu_type = h100, but gpus_per_node is 0",
        "account = 'a\"b': it holds \"",
        'memory_per_node: "lots" is not of the form "64G"',
        "sbatch_options: --nodes comes from --nodes of `lmscale launch slurm`",
        "sbatch_options: '-A x': write it as --name or --name=value",
        "variables: RANK is set by the launcher",
        "variables: SLURM_JOB_ID is set by the launcher",
        "variables: 'a b' is not a name",
        "container.kind = pyxis needs container.image",
        "container.kind = pyxis needs python",
        "container.kind = pyxis needs shared: the folders of runs and data",
        "scratch: 'tmp' must be an absolute path",
    ):
        assert words in told
    assert "mail-type" not in told


def test_an_unknown_key_is_told_with_the_nearest():
    assert problems_of(f"{SMALL}signal_second: 3") == [
        "profile:3: signal_second: unknown key. Did you mean signal_seconds?"
    ]
    assert "Did you mean slow_ratio?" in problems_of(f"{SMALL}preflight: {{slow: 1}}")[0]


def test_a_time_without_quotes_is_no_number_of_base_60():
    assert parse_cluster("time: 12:00:00\ntasks_per_node: 1").time == "12:00:00"


def test_whole_numbers_are_text_where_text_is_meant_and_others_want_quotes():
    cluster = parse_cluster(f"{SMALL}memory_per_node: 0\nvariables: {{A: 4, B: 010, C: '1.50'}}")
    assert cluster.memory_per_node == "0"
    assert cluster.variables == {"A": "4", "B": "010", "C": "1.50"}
    (problem,) = problems_of(f"{SMALL}variables: {{A: yes, B: 1.50}}")
    assert "A = True, B = 1.5: write the value in quotes" in problem


@pytest.mark.parametrize("seconds", [0, 30, 59])
def test_a_signal_that_slurm_might_send_too_late_is_refused(seconds):
    (problem,) = problems_of(f"{SMALL}signal_seconds: {seconds}")
    assert f"signal_seconds = {seconds} is less than 60: Slurm looks at time limits" in problem
    assert parse_cluster(f"{SMALL}signal_seconds: 60").signal_seconds == 60


def test_nodes_to_leave_out_are_slurms_lists():
    assert parse_cluster(f'{SMALL}exclude: [n7, "n[1-2,4]"]').exclude == ("n7", "n[1-2,4]")
    (problem,) = problems_of(f"{SMALL}exclude: [n7, 'n1; n2']")
    assert "exclude: 'n1; n2' is not a list of nodes" in problem


def test_an_exclusion_among_the_options_would_outweigh_those_of_the_preflight():
    problems = problems_of(f"{SMALL}sbatch_options: [--exclude=n1, -x n2]")
    assert "sbatch_options: --exclude is the profile's key exclude" in problems[0]
    assert "sbatch_options: '-x n2': write it as --name or --name=value" in "\n".join(problems)


@pytest.mark.parametrize("place", ["/home/bad-nodes", "/shared/../home/x", "/sharedx/bad-nodes"])
def test_a_cordon_file_lies_where_all_nodes_see_it(place):
    (problem,) = problems_of(f"{SMALL}shared: [/shared]\npreflight: {{cordon_file: {place}}}")
    assert f"preflight.cordon_file: '{place}' is not below a folder of shared (/shared)" in problem
    for shared in ("[/shared/]", "[/home, /shared]", "[/]", "[]"):
        cordon = "preflight: {cordon_file: /shared/bad}"
        assert parse_cluster(f"{SMALL}shared: {shared}\n{cordon}").preflight.cordon_file


@pytest.mark.parametrize("option", sorted(OWN_OPTIONS))
def test_an_option_that_is_decided_elsewhere_says_where(option):
    (problem,) = problems_of(f"{SMALL}sbatch_options: [--{option}=1]")
    assert f"--{option} {OWN_OPTIONS[option]}" in problem


@pytest.mark.parametrize(
    "key", ["gpus_per_node", "cpus_per_task", "max_restarts", "signal_seconds"]
)
def test_a_negative_number_is_refused(key):
    assert problems_of(f"{SMALL}{key}: -1")


def test_a_change_from_the_command_line_is_checked_as_the_profile_is():
    cluster = parse_cluster(SMALL)
    assert change_cluster(cluster, {"time": "2:00:00"}, name="--time").time == "2:00:00"
    with pytest.raises(ConfigError, match=r'--time: time: "90" is not of the form'):
        change_cluster(cluster, {"time": "90"}, name="--time")


@given(st.integers(0, 40), st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_its_seconds(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_time(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == (total or None)


@pytest.mark.parametrize("text", ["", "90", "10:00", "1-00", "1:60:00", "1:00:60", "0:00:00", "x"])
def test_a_time_that_slurm_reads_otherwise_than_people_do_is_none(text):
    assert parse_time(text) is None


def test_a_time_that_is_a_number_is_told_its_form():
    with pytest.raises(ConfigError, match='as "D-HH:MM:SS" or "HH:MM:SS"; found the number 360'):
        parse_cluster("time: 360\ntasks_per_node: 1")


def test_a_question_at_the_end_of_a_message_gets_no_full_stop():
    with pytest.raises(ConfigError) as caught:
        parse_cluster("time: 1:00:00")
    assert caught.value.problems[0].endswith("how many ranks a node?")


def test_what_a_rule_forbids_is_told_beside_unknown_keys_and_wrong_types():
    told = "\n".join(
        problems_of(
            'partiton: gpu\ngpus_per_node: "8"\ntime: "2:00"\nsignal_seconds: 20\n'
            "ntasks_per_node: 8\ngpu_type: h100\nvariables: {RANK: 1}\ndata: {memory: much}\n"
        )
    )
    for part in ("partiton: unknown", "gpus_per_node: input", "ntasks_per_node: unknown"):
        assert part in told
    for part in ('time: "2:00"', "signal_seconds = 20", "variables: RANK", "data.memory"):
        assert part in told
    assert "gpus_per_node is 0" not in told  # what was meant is not known


VALUES = {  # key → those that are of its type, of which a rule may forbid some
    "time": ["1:00:00", "2:00", "0:01:00"],
    "signal_seconds": [20, 300],
    "gpus_per_node": [0, 8],
    "tasks_per_node": [None, 2],
    "gpu_type": [None, "h100"],
    "chain": [1, 3],
    "requeue": [True, False],
    "python": [None, "/p"],
    "container": [{}, {"kind": "pyxis"}, {"image": "x"}],
    "shared": [[], ["/data"], ["data"]],
    "preflight": [{}, {"cordon_file": "/tmp/bad"}, {"cordon_file": "bad"}],
    "data": [{}, {"time": "0:02:00"}, {"memory": "much"}],
}


@settings(deadline=None, max_examples=60)
@given(
    tree=st.fixed_dictionaries({key: st.sampled_from(values) for key, values in VALUES.items()}),
    spoilt=st.sets(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3),
    renamed=st.booleans(),
)
def test_no_rule_speaks_of_a_value_that_is_not_known(tree, spoilt, renamed):
    if renamed:  # an unknown key, which the message may not guess the meaning of
        bad = {f"{key}x" if key in spoilt else key: value for key, value in tree.items()}
    else:
        bad = {key: [[]] if key in spoilt else value for key, value in tree.items()}
    told = problems_of(yaml.safe_dump(bad))
    try:
        parse_cluster(yaml.safe_dump(tree))
        right = set[str]()
    except ConfigError as error:
        right = {problem.partition(": ")[2] for problem in error.problems}
    more = {problem.partition(": ")[2] for problem in told if problem.startswith("profile: ")}
    assert {each for each in more if "is required and missing" not in each} <= right
