"""A job of evaluation: which commands it runs, and what is told before it is submitted."""

from pathlib import Path

import pytest
from slurm_cases import SMALL, make_config, make_request

from launcher.checks import places_of
from launcher.plan import plan_job
from launcher.scoring import find_scoring_problems, plan_scoring
from lmscale.cli.main import main
from lmscale.config.run import with_absolute_places

MAIN = ("-m", "lmscale.cli.main")
EXAMPLE = ["launch", "slurm", "configs/llama_7b.yaml", "--cluster", "example", "--job", "evaluate"]


def words(overrides, step=None):
    config = make_config(overrides=overrides)
    return [command[2:] for command in plan_scoring(config, MAIN, step=step)]


def test_sets_come_first_and_tasks_alone_where_there_are_no_sets():
    run = "/shared/ada/runs/llama_7b"
    assert words({}) == [("evaluate", run)]
    more = {"evaluation.tasks": "[a, b]", "evaluation.tasks_limit": 9}
    more |= {"evaluation.tasks_include_path": "/mine"}
    of_tasks = ("--tasks", "a,b", "--include-path", "/mine", "--limit", "9")
    assert words(more, 30) == [
        ("evaluate", run, "--step", "30"),
        ("evaluate", run, "--step", "30", *of_tasks),
    ]
    assert words(more | {"evaluation.sets": "{}"}) == [("evaluate", run, *of_tasks)]


def test_places_of_tasks_are_absolute_and_must_be_seen_by_the_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    more = {"evaluation.tasks": "[tasks, hellaswag]", "evaluation.tasks_include_path": "more"}
    config = with_absolute_places(make_config(overrides=more))
    assert config.evaluation.tasks == (str(tmp_path / "tasks"), "hellaswag")
    job = plan_job(make_request(SMALL, config=config), "evaluate")
    places = places_of(config, job, tmp_path)
    assert {str(tmp_path / "tasks"), str(tmp_path / "more")} <= set(places)
    problems = find_scoring_problems(config, step=None, steps=[3], after=None)
    assert len(problems) == 1 and f"{tmp_path}/more is not there" in problems[0]


def test_a_checkpoint_that_is_not_there_is_told_unless_a_job_is_waited_for():
    config = make_config()

    def problems(step, steps, after=None):
        return find_scoring_problems(config, step=step, steps=steps, after=after)

    assert "holds no checkpoint yet" in problems(None, [])[0]
    assert "--step 7" in problems(7, [3, 5])[0] and "There are: 3, 5." in problems(7, [3, 5])[0]
    assert problems(5, [3, 5]) == problems(None, [3]) == problems(7, [], "4711") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--after", "soon"), "--after soon: give the number of a job, such as 4711 or"),
        (("--job", "train", "--step", "3"), "--step has no meaning for --job train"),
    ],
)
def test_choices_that_mean_nothing_are_refused(capfd, arguments, said):
    assert main([*EXAMPLE, *arguments, "--dry-run"]) == 2
    assert said in capfd.readouterr().err


def test_the_choices_are_in_the_script(capfd):
    assert main([*EXAMPLE, "--step", "30", "--after", "4711", "--dry-run"]) == 0
    script = capfd.readouterr().out
    assert "#SBATCH --dependency=afterany:4711\n" in script
    assert script.rstrip().endswith(f"evaluate {Path('runs/llama_7b').absolute()} --step 30")


@pytest.mark.parametrize(("nodes", "asked"), [((), "gpu:1"), (("--nodes", "1"), "gpu:8")])
def test_nodes_that_are_asked_for_are_used_whole(capfd, nodes, asked):
    assert main([*EXAMPLE, *nodes, "--dry-run"]) == 0
    assert f"#SBATCH --gres={asked}\n" in capfd.readouterr().out
