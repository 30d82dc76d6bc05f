import gc
import json
import math
import resource
import weakref

import pytest

from lmscale.errors import NoSpaceError
from lmscale.files.jsonl import Sifted, read_rows
from lmscale.runs import trackers as trackers_module
from lmscale.runs.loss_curves import BY_STEP, BY_TOKENS, TRAINED
from lmscale.runs.trackers import EVENTS_FOLDER, METRICS_FILE, open_trackers


def scalars(folder, name, run="."):
    """(step, value) as TensorBoard shows them of this run below the folder of events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / EVENTS_FOLDER / run))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def log_steps(folder, first, last, loss, resumed_step=0):
    with open_trackers(folder, resumed_step=resumed_step) as trackers:
        for step in range(first, last + 1):
            trackers.log(step, {"loss": loss, "nothing": None})


def test_figures_go_to_both_places(tmp_path):
    log_steps(tmp_path, 1, 2, 0.5)
    rows = read_rows(tmp_path / METRICS_FILE)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.5)]
    assert set(rows[0]) == {"step", "time", "loss"}
    assert scalars(tmp_path, "loss") == [(1, 0.5), (2, 0.5)]


def test_after_a_resume_no_step_is_shown_twice(tmp_path):
    log_steps(tmp_path, 1, 5, 0.5)
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    log_steps(tmp_path, 4, 6, 0.25, resumed_step=3)
    expected = [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.25), (5, 0.25), (6, 0.25)]
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / METRICS_FILE)] == expected
    assert scalars(tmp_path, "loss") == expected


def test_after_a_resume_the_loss_curves_go_on_over_steps_and_over_tokens(tmp_path):
    def train(first, last, loss, resumed_step):
        done = [300 * resumed_step]
        with open_trackers(
            tmp_path, resumed_step=resumed_step, tokens=lambda: done[0], held_out=["a"]
        ) as trackers:
            for step in range(first, last + 1):
                done[0] = 300 * step
                trackers.log(step, {}, losses={TRAINED: loss, "a": 2 * loss})

    train(1, 4, 0.5, resumed_step=0)
    train(3, 3, 0.25, resumed_step=2)  # step 4 was not reached again
    assert scalars(tmp_path, BY_STEP) == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert scalars(tmp_path, BY_STEP, "heldout/a") == [(1, 1.0), (2, 1.0), (3, 0.5)]
    over_tokens = [(300, 0.5), (600, 0.5), (900, 0.25)]
    assert scalars(tmp_path, BY_TOKENS, "by_tokens") == over_tokens
    assert scalars(tmp_path, f"{BY_TOKENS}/a", "by_tokens") == [(n, 2 * v) for n, v in over_tokens]


def test_the_rows_that_a_start_reads_are_let_go_before_it_trains(tmp_path, monkeypatch):
    class Rows(list):
        pass

    rows = Rows([{"step": 1}])
    is_held = weakref.ref(rows)
    given = [Sifted(rows, [], [])]
    del rows
    monkeypatch.setattr(trackers_module, "sift_rows", lambda *_: given.pop())
    with open_trackers(tmp_path, resumed_step=1):
        gc.collect()
        assert not is_held()


def test_a_run_that_starts_over_keeps_nothing(tmp_path):
    log_steps(tmp_path, 1, 3, 0.5)
    log_steps(tmp_path, 1, 1, 0.25)
    assert [row["loss"] for row in read_rows(tmp_path / METRICS_FILE)] == [0.25]


def test_a_loss_that_is_not_finite_is_valid_json(tmp_path):
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"loss": math.nan})
    assert json.loads((tmp_path / METRICS_FILE).read_text())["loss"] is None


def test_text_and_layout_are_taken(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(tmp_path) as trackers:
        trackers.log_text("config", "run:\n  name: x")
        trackers.log_layout({"training": {"losses": ["loss", "evaluation/.*"]}})
        trackers.flush()
    accumulator = EventAccumulator(str(tmp_path / EVENTS_FOLDER))
    accumulator.Reload()
    tags = accumulator.Tags()["tensors"]
    assert "config/text_summary" in tags
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    run:\n      name: x"


def test_a_full_disk_is_a_clear_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_trackers(tmp_path) as trackers:
        # Room for the head of the events' file, but not for a row of metrics.jsonl.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(
                NoSpaceError, match="No space is left .* while writing metrics.jsonl"
            ):
                trackers.log(1, {f"loss of set {number}": 1.0 for number in range(100)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_after_a_kill_before_the_first_checkpoint_no_step_is_shown_twice(tmp_path):
    log_steps(tmp_path, 1, 3, 0.5)
    (events,) = (tmp_path / EVENTS_FOLDER).glob("events.*")
    # As if by a host of a later name: of one second, it would be read last.
    second = events.name.split(".")[3]
    events.rename(events.with_name(f"events.out.tfevents.{second}.zzz.1.0"))
    for loss in (0.25, 0.125):
        log_steps(tmp_path, 1, 2, loss)
        assert scalars(tmp_path, "loss") == [(1, loss), (2, loss)]
