"""A ladder: what is planned of it, what its command writes, reads and foretells."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.sweep import plan_sweep, read_rows
from lmscale.cli.main import main
from lmscale.config import RunConfig, load_config
from lmscale.config.assets import find_assets
from lmscale.errors import ConfigError
from lmscale.plan.changes import change
from lmscale.plan.ladder import BATCH_POWER, RATE_POWER, count, plan_ladder
from lmscale.plan.ladder_runs import choose_best, read_ladder, read_loss

CONFIG = find_assets("configs") / "ladder_cpu.yaml"


@pytest.fixture(scope="module")
def gpt2() -> RunConfig:
    return load_config(find_assets("configs") / "gpt2_124m.yaml")


@settings(max_examples=3, deadline=None)
@given(budget=st.floats(18, 20))
def test_rungs_stay_within_the_budget_and_are_configurations(budget: float):
    config = load_config(find_assets("configs") / "gpt2_124m.yaml")
    ladder = plan_ladder(config, budget_flops=10**budget)
    assert ladder.flops <= 10**budget
    assert len({rung.parameters for rung in ladder.rungs}) >= 3
    for rung in ladder.rungs[::11]:
        smaller = change(config, rung.values)
        assert count(smaller) == rung.parameters < count(config)
        assert smaller.samples_after(smaller.train.steps) * smaller.window.stride == rung.tokens
        assert smaller.engine.optimizer.lr == rung.rate


def test_without_mup_batch_and_rate_follow_the_compute_and_several_rates_are_tried(
    gpt2: RunConfig,
):
    ladder = plan_ladder(gpt2, budget_flops=1e19)
    lr = gpt2.engine.optimizer.lr
    low, middle, high = ladder.rungs[-3:]
    compute = middle.parameters * middle.tokens / (ladder.parameters * ladder.tokens)
    assert middle.rate == pytest.approx(lr * compute**RATE_POWER, rel=0.02)
    windows = gpt2.batch.global_windows * compute**BATCH_POWER
    assert middle.values["batch.global_windows"] == pytest.approx(windows, abs=4)
    assert (low.rate / middle.rate, high.rate / middle.rate) == pytest.approx((0.5, 2), rel=0.01)


def test_with_mup_layers_and_rate_stay():
    config = load_config(CONFIG)
    ladder = plan_ladder(
        config, budget_flops=1e16, sizes=[3e5, 1e6, 5e6], tokens=[128e3, 256e3], rates=None
    )
    assert len(ladder.rungs) == 6
    assert {rung.rate for rung in ladder.rungs} == {config.engine.optimizer.lr}
    assert {rung.values["model.layers"] for rung in ladder.rungs} == {config.model.layers}  # pyright: ignore[reportAttributeAccessIssue]
    widths = [rung.values["model.width"] for rung in ladder.rungs[::2]]
    assert widths == sorted(widths) and widths[-1] < 416


def test_a_budget_that_is_too_small_is_told(gpt2: RunConfig):
    with pytest.raises(ConfigError, match="a ladder needs three sizes"):
        plan_ladder(gpt2, budget_flops=1e12)
    with pytest.raises(ConfigError, match="more than the 1e\\+12 that may be used"):
        plan_ladder(gpt2, budget_flops=1e12, sizes=[3e6], tokens=[1e9])


def test_no_ladder_is_made_of_a_run_that_begins_with_anothers_weights(gpt2: RunConfig):
    begun = change(gpt2, {"run.init_from": "runs/base"})
    with pytest.raises(ConfigError, match="begin with random weights"):
        plan_ladder(begun, budget_flops=1e19)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().out


def command(tmp_path: Path, *more: object) -> list[object]:
    place = f"run.folder={tmp_path}/large"
    return ["plan", "ladder", CONFIG, "--set", place, *more]


def test_the_command_writes_rows_that_an_array_takes_and_foretells_from_finished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = ["--sizes", "300k,700k,1.5M,3M", "--tokens", "128k,256k,512k", "--budget", "1e15"]
    code, said = run(capsys, *command(tmp_path, *first))
    assert code == 0
    assert "12 of 12 runs are missing. Submit them as one array:" in said
    path = tmp_path / "ladder_cpu-ladder.yaml"
    config = load_config(CONFIG, [f"run.folder={tmp_path}/large"])
    sweep = plan_sweep(
        CONFIG,
        [f"run.folder={tmp_path}/large"],
        [],
        rows=read_rows(path),
        name="ladder_cpu-ladder",
    )
    runs = read_ladder(path, config, name="ladder_cpu-ladder")
    assert [member.folder for member in sweep.runs] == [each.folder for each in runs]
    for each in runs:
        loss = 1.5 + 300 / each.parameters**0.4 + 200 / each.tokens**0.35
        each.folder.mkdir(parents=True)
        row = {"step": 9, "time": 1.0, "final/heldout/loss": loss}
        (each.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    picture = tmp_path / "ladder.svg"
    code, said = run(capsys, *command(tmp_path, "--json", "--svg", picture))
    told = json.loads(said)
    expected = 1.5 + 300 / count(config) ** 0.4 + 200 / told["target"]["tokens"] ** 0.35
    assert told["prediction"]["loss"] == pytest.approx(expected, rel=1e-3)
    assert told["prediction"]["low"] <= expected * 1.001
    assert picture.read_text().count("<circle") == 13
    code, said = run(capsys, *command(tmp_path))
    assert code == 0 and f"prediction   {expected:.3f}"[:-1] in said


def test_a_ladder_that_is_there_is_not_planned_anew_by_other_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = ["--sizes", "300k,700k,1.5M", "--tokens", "128k", "--budget", "1e15"]
    assert run(capsys, *command(tmp_path, *sizes))[0] == 0
    assert run(capsys, *command(tmp_path, "--budget", "1e16"))[0] == 2
    assert run(capsys, *command(tmp_path, "--out", tmp_path / "b.yaml", "--sizes", "x"))[0] == 2


def test_the_better_of_two_learning_rates_counts(tmp_path: Path):
    config = load_config(CONFIG, [f"run.folder={tmp_path}/large"])
    path = tmp_path / "rows.yaml"
    rows = [{"engine.optimizer.lr": rate, "train.steps": 100} for rate in (0.01, 0.02, 0.04)]
    path.write_text(json.dumps({"runs": rows}))
    for number, loss in enumerate((3.0, 2.5)):  # the third is not finished
        folder = tmp_path / "l" / f"l-{number:03d}"
        folder.mkdir(parents=True)
        row = {"step": 100, "time": 1.0, "final/heldout/loss": loss}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (best,) = choose_best(read_ladder(path, config, name="l"))
    assert (best.rate, best.loss) == (0.02, 2.5)


def test_where_nothing_is_held_out_the_last_steps_are_the_loss(tmp_path: Path):
    config = change(load_config(CONFIG), {"evaluation.sets": {}, "train.steps": 100})
    rows = [{"step": step, "time": 1.0, "train/loss": 200.0 - step} for step in range(10, 110, 10)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_loss(tmp_path, config) == 100.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert read_loss(tmp_path, config) is None
