"""What is told of the harness' own tasks without loading the harness."""

import os

import pytest

from lmscale.errors import ConfigError
from lmscale.evaluation import default_tasks
from lmscale.evaluation.default_tasks import OFFLINE, advise_offline, check_names, look_for_hub

pytest.importorskip("lm_eval")


def test_a_name_of_no_task_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no task 'hellaswagg'\. Nearest: hellaswag, "):
        check_names(["arc_easy", "hellaswagg", "leaderboard"])


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch):
    for name in OFFLINE:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert advise_offline(["arc_easy"]) == ""
    look_for_hub()
    assert OFFLINE.items() <= os.environ.items()
    assert "--tasks arc_easy --limit 1`, and copy its HF_HOME" in advise_offline(["arc_easy"])


def test_every_name_that_the_harness_may_know_stands_in_a_file_that_is_read(monkeypatch, tmp_path):
    folder = tmp_path / "tasks" / "kind"
    folder.mkdir(parents=True)
    (folder / "one.yaml").write_text("include: rest\ntask: one\n")
    (folder / "rest").write_text("tag: several\n")
    (folder / "code.py").write_text("nosuch")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(default_tasks.importlib.util, "find_spec", lambda name: spec)
    default_tasks.refuse_unknown(["one", "several"], {})
    with pytest.raises(ConfigError, match="no task 'nosuch'"):
        default_tasks.refuse_unknown(["nosuch"], {})
