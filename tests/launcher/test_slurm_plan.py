"""What a job asks Slurm for: pure, and the same from wherever it is planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_cases import APPTAINER, HOME, PYXIS, SMALL, make_config, make_request, make_sweep

from launcher.checks import describe_unusable_nodes, is_below
from launcher.job import SlurmJob
from launcher.options import parse_nodes
from launcher.plan import job_name, plan_job, plan_nodes
from launcher.render import render
from launcher.submit import plan_submission
from launcher.sweep import (
    find_conflict,
    is_rows,
    name_keys,
    parse_axis,
    plan_sweep,
    read_rows,
)
from lmscale.config.assets import find_assets
from lmscale.errors import ConfigError
from lmscale.runs.profiles import ProfilePlan

GPUS = "time: 1:00:00\ngpus_per_node: 8\nmemory_per_node: 800G\nexclusive: true\n"


def directive(job: SlurmJob, name: str) -> str | None:
    """The value of a directive, "" where it has none, None where it is not there."""
    found = [d for d in job.directives if d.partition("=")[0] == f"--{name}"]
    assert len(found) <= 1
    return found[0].partition("=")[2] if found else None


@given(st.integers(1, 2048), st.integers(1, 8), st.integers(1, 40), st.integers(0, 40))
def test_usable_numbers_of_nodes_are_those_that_share_a_step_evenly(windows, ranks, low, more):
    config = make_config("demo", {"batch.global_windows": windows})
    counts = range(low, low + more + 1)
    fitting = tuple(count for count in counts if windows % (count * ranks) == 0)
    try:
        usable = plan_nodes(config, ranks_per_node=ranks, min_nodes=low, max_nodes=low + more)
    except ConfigError:
        assert fitting == ()
        return
    assert usable == fitting


def test_a_number_of_nodes_that_cannot_be_used_names_those_that_can():
    with pytest.raises(ConfigError) as caught:
        plan_job(make_request(GPUS, min_nodes=3, max_nodes=3), "train")
    assert "cannot be dealt evenly to 24 ranks" in str(caught.value)
    assert "With 8 ranks a node that is --nodes 1 or 2 or 4 or 8." in str(caught.value)


def test_steps_to_profile_go_to_every_rank_and_are_steps_that_the_run_does():
    plan = ProfilePlan(first=10, last=12, ranks=(0, 7))
    job = plan_job(make_request(GPUS, profile=plan), "train")
    assert "launcher.rank --profile 10:12 --profile-ranks 0,7" in render(job)
    late = replace(plan, last=10**9, ranks=(8,))
    with pytest.raises(ConfigError) as caught:
        plan_job(make_request(GPUS, profile=late), "train")
    assert len(caught.value.problems) == 2


def test_ranks_of_a_node_that_never_fit_are_told():
    profile = "time: 1:00:00\ntasks_per_node: 3\n"
    with pytest.raises(ConfigError, match="No number of nodes with 3 ranks each will do"):
        plan_job(make_request(profile), "train")


def test_a_range_without_any_usable_number_is_refused():
    with pytest.raises(ConfigError, match="--nodes 5-7: no number of nodes in this range"):
        plan_job(make_request(GPUS, min_nodes=5, max_nodes=7), "train")


def test_a_range_asks_for_what_can_be_used_and_says_what_cannot():
    request = make_request(GPUS, min_nodes=3, max_nodes=9)
    job = plan_job(request, "train")
    assert directive(job, "nodes") == "4-8" and job.usable_nodes == (4, 8)
    (warning,) = describe_unusable_nodes(request, job)
    assert "1,024 windows a step cannot be shared evenly by 8 ranks on each of 3, 5, 6, 7 or 9" in (
        warning
    )
    assert "On 5, 6 or 7 nodes it uses the next smaller number" in warning


def test_the_runs_of_a_sweep_share_a_job_only_on_nodes_that_fit_them_all():
    config = make_config("demo", {"batch.global_windows": 24})
    other = make_config("demo", {"batch.global_windows": 20})
    sweep = make_sweep().model_copy(update={"configs": (config, config)})
    mixed = make_sweep().model_copy(update={"configs": (config, other)})
    wide = {"min_nodes": 1, "max_nodes": 6}
    alike = plan_job(make_request(SMALL, sweep=sweep, **wide), "train")
    assert alike.usable_nodes == (1, 2, 3, 4, 6)
    assert plan_job(make_request(SMALL, sweep=mixed, **wide), "train").usable_nodes == (1, 2)
    with pytest.raises(ConfigError, match="will do for all runs of the sweep"):
        plan_job(make_request(SMALL, sweep=mixed, min_nodes=3, max_nodes=5), "train")


def test_two_runs_of_one_name_in_two_folders_share_no_chain():
    names = {
        job_name("tiny", kind, Path(folder))
        for kind in ("train", "evaluate", "corpus", "shards", "preflight")
        for folder in ("/a/tiny", "/b/tiny")
    }
    assert len(names) == 10


def test_training_takes_the_node_and_the_other_jobs_a_part_of_it():
    request = make_request(GPUS, min_nodes=2, max_nodes=2, tasks=16)
    one_rank = replace(request, takes_whole_nodes=False)
    train, score = plan_job(request, "train"), plan_job(one_rank, "evaluate")
    data, look = plan_job(request, "corpus"), plan_job(request, "preflight")
    assert [directive(job, "nodes") for job in (train, look, score, data)] == ["2", "2", "1", "1"]
    assert [directive(job, "gres") for job in (train, look, score, data)] == [
        *("gpu:8", "gpu:8", "gpu:1"),
        None,
    ]
    assert [directive(job, "exclusive") for job in (train, look, score, data)] == [
        "",
        "",
        None,
        None,
    ]
    assert directive(train, "mem") == "800G"
    assert directive(score, "mem") == directive(data, "mem") == f"{100 * 2**20}K"
    assert directive(data, "array") == "0-15"
    again = plan_job(replace(request, only=(3, 7, 8)), "corpus")
    assert (directive(again, "array"), again.tasks) == ("3,7-8", 16)
    assert directive(score, "signal") is None  # it has nothing to save


def test_an_evaluation_of_nodes_takes_them_whole_with_a_rank_for_each_gpu():
    job = plan_job(make_request(GPUS, min_nodes=2, max_nodes=4), "evaluate")
    assert (directive(job, "nodes"), directive(job, "gres")) == ("2-4", "gpu:8")
    assert directive(job, "exclusive") == "" and job.tasks_per_node == 8
    assert '--nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=8' in render(job)


def test_all_memory_of_a_node_is_not_asked_for_a_part_of_it():
    request = make_request(GPUS.replace("800G", '"0"'))
    assert directive(plan_job(request, "train"), "mem") == "0"
    one_rank = replace(request, takes_whole_nodes=False)
    assert directive(plan_job(one_rank, "evaluate"), "mem") is None


def test_where_requeue_is_forbidden_a_chain_runs_one_job_at_a_time():
    job = plan_job(make_request(f"{SMALL}requeue: false\nchain: 4\n"), "train")
    assert directive(job, "dependency") == "singleton"
    assert directive(job, "no-requeue") == "" and directive(job, "requeue") is None
    assert job.chain == 4
    alone = plan_job(make_request(SMALL), "train")
    assert directive(alone, "dependency") is None and directive(alone, "requeue") == ""


def test_a_sweep_is_no_chain():
    chain = f"{SMALL}requeue: false\nchain: 3\n"
    with pytest.raises(ConfigError, match="a sweep cannot be a chain of 3 jobs.*--chain 1"):
        plan_job(make_request(chain, sweep=make_sweep()), "train")
    assert (
        plan_job(make_request(f"{SMALL}requeue: false\n", sweep=make_sweep()), "train").chain == 1
    )


def test_data_jobs_keep_their_state_in_the_folder_that_they_build():
    request = make_request(SMALL, tasks=3)
    for kind, folder in (("corpus", f"{HOME}/data/corpus"), ("shards", f"{HOME}/data/shards")):
        job = plan_job(request, kind)
        assert job.state_folder == Path(folder) / ".slurm"
        assert job.output == f"{folder}/.slurm/job-%A_%a.out"
        entry = ("launcher.task", HOME) if kind == "corpus" else ("lmscale.cli.main",)
        assert job.command[1:] == ("-m", *entry, kind, "build", str(job.config))
        assert job.tasks == 3


def test_each_run_of_a_sweep_has_its_own_folder_state_and_frozen_configuration():
    job = plan_job(make_request(f"{SMALL}array_limit: 5", sweep=make_sweep()), "train")
    root = Path(f"{HOME}/runs/rates")
    assert (job.run_folder, job.state_folder) == (root, root / "slurm")
    assert directive(job, "array") == "0-1%5"
    assert [member.state_folder for member in job.members] == [
        root / "rates-000/slurm",
        root / "rates-001/slurm",
    ]
    assert job.members[1].config == job.frozen_folder / "configs/001.yaml"


def test_a_sweep_begins_with_the_run_that_a_single_run_would_begin_with(tmp_path):
    (tmp_path / "runs/base").mkdir(parents=True)
    (tmp_path / "runs/other").mkdir()
    config = tmp_path / "c.yaml"
    config.write_text(
        f"run: {{name: new, folder: {tmp_path}/runs/new, init_from: base@4}}\n"
        "tokenizer: {vocab_size: 512}\n"
    )
    rates = [("engine.optimizer.lr", ("1e-3", "1e-4"))]
    given = [c.run.init_from for c in plan_sweep(config, [], rates, name="rates").configs]
    assert given == [f"{tmp_path}/runs/base@4"] * 2
    beginnings = [("run.init_from", ("base@2", "other"))]
    given = [c.run.init_from for c in plan_sweep(config, [], beginnings, name="many").configs]
    assert given == [f"{tmp_path}/runs/base@2", f"{tmp_path}/runs/other"]


def test_pyxis_gets_its_image_its_mounts_and_the_variables_that_must_survive_it():
    options = plan_job(make_request(PYXIS), "train").srun_options
    assert options == (
        "--mpi=none",
        "--container-image=nvcr.io#nvidia/pytorch:25.08-py3",
        "--container-mounts=/shared:/shared,/local:/local,/data:/data,/odd folder:/odd folder",
        "--container-env=PYTHONPATH,NCCL_DEBUG,LABEL,EMPTY",
        "--no-container-mount-home",
    )


def test_apptainer_stands_between_srun_and_the_interpreter():
    job = plan_job(make_request(APPTAINER), "train")
    mounts = ("--bind", "/shared:/shared", "--bind", "/tmp:/tmp")
    image = ("--cleanenv", "/shared/images/a b.sif")
    assert job.launch_prefix == ("apptainer", "exec", "--nv", *mounts, *image)
    assert job.python == "python3"
    assert "--nv" not in plan_job(make_request(APPTAINER), "corpus").launch_prefix


@pytest.mark.parametrize(("text", "nodes"), [("8", (8, 8)), ("4-8", (4, 8)), (" 1 ", (1, 1))])
def test_nodes_are_a_number_or_a_range(text, nodes):
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["", "0", "8-4", "-2", "4-", "a", "1.5", "1-2-3", "٣"])
def test_nodes_that_are_neither_are_refused(text):
    with pytest.raises(ConfigError, match="give a number such as 8, or a range such as 4-8"):
        parse_nodes(text)


def test_submissions_of_one_second_do_not_share_a_folder(tmp_path):
    first = plan_submission(tmp_path, "train", 0.0)
    (tmp_path / first).mkdir()
    second = plan_submission(tmp_path, "train", 0.0)
    (tmp_path / second).mkdir()
    assert (first, second) == ("19700101-000000-train", "19700101-000000-train-2")
    assert plan_submission(tmp_path, "train", 0.0) == "19700101-000000-train-3"
    assert plan_submission(tmp_path, "evaluate", 0.0) == "19700101-000000-evaluate"


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("a.b=1e-3,3e-4", ("a.b", ("1e-3", "3e-4"))),
        ("a=x", ("a", ("x",))),
        ("a=[0.9,0.95],[0.8,0.9]", ("a", ("[0.9,0.95]", "[0.8,0.9]"))),
        ("a='x,y',z", ("a", ("'x,y'", "z"))),
        ("a={b: 1, c: 2}, null", ("a", ("{b: 1, c: 2}", "null"))),
    ],
)
def test_an_axis_is_a_key_and_its_values(text, axis):
    assert parse_axis(text) == axis


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "a=", "a=1,,2", "a=[1,2", "a=1,1", "run.name=x,y", "run.folder=a,b"]
)
def test_an_axis_that_makes_no_sweep_is_refused(text):
    with pytest.raises(ConfigError, match="--array"):
        parse_axis(text)


DEMO = find_assets("configs") / "demo.yaml"


def test_a_sweep_is_every_combination_with_the_last_axis_turning_fastest():
    axes = [("engine.optimizer.lr", ("1e-3", "3e-3")), ("engine.zero_stage", ("1", "2", "3"))]
    plan = plan_sweep(DEMO, ["run.folder=/x/demo"], axes, name="grid")
    assert plan.root == Path("/x/grid")
    found = [
        (config.run.name, config.engine.optimizer.lr, config.engine.zero_stage)
        for config in plan.configs
    ]
    assert found == [
        (f"grid-00{index}", lr, stage)
        for index, (lr, stage) in enumerate((lr, s) for lr in (1e-3, 3e-3) for s in (1, 2, 3))
    ]
    assert plan.runs[4].values == {"engine.optimizer.lr": "3e-3", "engine.zero_stage": "2"}
    assert plan.configs[4].folder == Path("/x/grid/grid-004")


def test_a_file_of_rows_is_a_sweep_with_a_run_for_each(tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text(
        "runs:\n- {model.width: 96, train.steps: 900}\n- {model.width: 48, train.steps: 500}\n"
    )
    assert is_rows(str(path)) and not is_rows("engine.deepspeed=a.yaml")
    rows = read_rows(path)
    plan = plan_sweep(DEMO, [], [("run.seed", ("1", "2"))], rows=rows, name="rungs")
    found = [(c.run.name, c.model.width, c.train.steps, c.run.seed) for c in plan.configs]
    assert found == [
        ("rungs-000", 96, 900, 1),
        ("rungs-001", 96, 900, 2),
        ("rungs-002", 48, 500, 1),
        ("rungs-003", 48, 500, 2),
    ]
    assert plan.keys == name_keys(str(path)) + name_keys("run.seed=1,2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: 3", "give runs: a list"),
        ("runs: []", "give runs: a list"),
        ("runs: [{a: 1}, {b: 1}]", "its rows name different keys"),
        ("runs: [{a: 1}, {a: 1}]", "every row once"),
        ("runs: [{a: 1, b: 2}, {b: 2, a: 1}]", "every row once"),
        ("runs: [{run.name: x}]", "a sweep names its runs"),
    ],
)
def test_a_file_of_rows_that_makes_no_sweep_is_refused(tmp_path, text, said):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_rows(tmp_path / "rows.yaml")


def test_a_date_in_a_row_is_the_text_of_it(tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text("runs: [{corpus.folder: 2026-12-01}]")
    (config,) = plan_sweep(DEMO, [], [], rows=read_rows(path)).configs
    assert config.corpus.folder.endswith("2026-12-01")


def test_every_run_of_a_sweep_has_a_place_of_its_own_for_its_checkpoints():
    def places(*axes):
        plan = plan_sweep(DEMO, ["checkpoint.folder=s3://bucket/grid/"], axes, name="grid")
        return [config.checkpoint.folder for config in plan.configs]

    seeds = ("run.seed", ("1", "2"))
    assert places(seeds) == ["s3://bucket/grid/grid-000", "s3://bucket/grid/grid-001"]
    assert places(("checkpoint.folder", ("/a", "/b"))) == ["/a", "/b"]


def test_the_default_name_of_a_sweep_is_the_runs():
    plan = plan_sweep(DEMO, ["run.folder=/x/demo"], [("run.seed", ("1", "2"))])
    assert (plan.name, plan.root) == ("demo-sweep", Path("/x/demo-sweep"))


def test_a_sweep_does_not_go_where_a_file_or_something_else_is(tmp_path):
    axes = [("run.seed", ("1", "2"))]
    plan = plan_sweep(DEMO, [f"run.folder={tmp_path}/demo"], axes)
    assert find_conflict(plan) is None
    plan.root.touch()
    assert "demo-sweep/sweep.json cannot be read. Name another" in (find_conflict(plan) or "")
    plan.root.unlink()
    (plan.root / "slurm").mkdir(parents=True)
    assert find_conflict(plan) is None
    (plan.root / "other").touch()
    assert "is not empty and holds no sweep" in (find_conflict(plan) or "")


def test_the_problems_of_all_runs_of_a_sweep_are_told_with_their_values():
    with pytest.raises(ConfigError) as caught:
        plan_sweep(DEMO, [], [("engine.zero_stage", ("1", "4", "5"))])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith("engine.zero_stage=4: ")


def test_a_key_given_twice_is_no_axis():
    with pytest.raises(ConfigError, match="name every key once"):
        plan_sweep(DEMO, [], [("run.seed", ("1", "2")), ("run.seed", ("3",))])


def test_a_place_is_shared_when_it_lies_below_a_shared_folder_by_name_or_behind_a_link(tmp_path):
    (tmp_path / "disk/runs").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    shared = [str(tmp_path / "disk")]
    assert is_below(str(tmp_path / "disk/runs/a"), shared)
    assert is_below(str(tmp_path / "home/runs/not yet there"), shared)
    assert not is_below(str(tmp_path / "disk2/runs"), shared)
    assert is_below(str(tmp_path / "disk/runs"), [str(tmp_path / "home")])


def test_a_wrong_key_of_a_sweep_is_told_once_a_value_and_blamed_on_array():
    axes = [("learning_rate", ("1e-3", "3e-4")), ("run.seed", ("1", "2"))]
    with pytest.raises(ConfigError) as caught:
        plan_sweep(DEMO, ["run.folder=/x/demo"], axes)
    said = [problem.partition(" run.seed=1: ")[2] for problem in caught.value.problems]
    assert said == [
        f"--array learning_rate={rate}: learning_rate: unknown key. Here this is "
        "engine.optimizer.lr."
        for rate in ("1e-3", "3e-4")
    ]
