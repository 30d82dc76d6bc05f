import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import lmscale
from lmscale.cli import app as commands
from lmscale.cli import main as cli
from lmscale.errors import ConfigError, GuardError
from lmscale.layers import LAYERS

ROOT = Path(__file__).parents[2]


def lmscale_command(*arguments):
    command = [sys.executable, "-m", "lmscale", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_help_lists_the_commands_in_the_order_of_the_flow(capsys):
    assert cli.main(["--help"]) == 0
    shown = re.findall(r"^│ (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert tuple(shown) == tuple(commands.COMMANDS)
    # What plans a fine-tuning lies before what trains it.
    stages = [name for name in commands.COMMANDS if name in LAYERS and name != "finetune"]
    assert stages == sorted(stages, key=LAYERS.index)


def test_every_command_has_help(capsys):
    for name in commands.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3


def test_help_is_printed_without_loading_torch():
    script = (
        "import sys; from lmscale.cli.main import main; main(['--help'])\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0


def test_the_version_is_printed():
    done = lmscale_command("--version")
    assert (done.returncode, done.stdout) == (0, f"lmscale {lmscale.__version__}\n")


@pytest.mark.parametrize(("typo", "meant"), [("trian", "train"), ("shard", "shards")])
def test_a_misspelt_command_names_the_nearest(capsys, typo, meant):
    assert cli.main([typo]) == 2
    assert f"Did you mean '{meant}'" in capsys.readouterr().err


def test_a_command_that_another_group_has_is_named_with_that_group(capsys):
    assert cli.main(["runs", "compare", "a", "b"]) == 2
    assert "Did you mean 'lmscale compare'" in capsys.readouterr().err
    assert cli.main(["nonsense"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_a_users_mistake_is_told_without_a_traceback(tmp_path):
    done = lmscale_command("config", "show", str(tmp_path / "missing.yaml"))
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/missing.yaml: there is no such configuration file.\n"


def raising(monkeypatch, error):
    """The command line, of which one command fails."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail():
        raise error

    monkeypatch.setattr(commands, "app", app)


def test_all_problems_are_told_and_brackets_are_text(monkeypatch, capsys):
    raising(monkeypatch, ConfigError(["[bold]a[/bold] in [x]", "b " * 100]))
    assert cli.main([]) == 2
    assert capsys.readouterr().err == f"error: [bold]a[/bold] in [x]\nerror: {'b ' * 100}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(GuardError("x"), 76), (KeyboardInterrupt(), 130), (typer.Exit(75), 75)],
)
def test_the_exit_code_is_the_errors(monkeypatch, error, code):
    raising(monkeypatch, error)
    assert cli.main([]) == code


def test_a_bug_keeps_its_traceback(monkeypatch):
    raising(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError, match="bug"):
        cli.main([])


# Sends a request for a save as soon as anything is imported that takes time.
SIGNAL_WHILE_IMPORTING = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        is_light = name in ("lmscale", "lmscale.__main__", "lmscale.cli", "lmscale.cli.main")
        is_light = is_light or name.startswith("launcher")
        if not is_light and name.split(".")[0] not in sys.stdlib_module_names:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                print("asked", flush=True)
                os.kill(os.getpid(), signal.SIGUSR2)

signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2,))  # which this one may inherit
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("lmscale", "--version"),
        ("lmscale.cli.main", "--version"),
        ("launcher.preflight", "lift", "--file", "cordon.jsonl", "--node", "n1"),
    ],
)
def test_a_request_for_a_save_does_not_kill_a_command_that_is_still_importing(tmp_path, words):
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_WHILE_IMPORTING, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout[:6]) == (0, "asked\n"), done.stderr


def test_a_reader_that_goes_away_is_no_bug():
    script = f"{sys.executable} -m lmscale config schema | head -c 10"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
