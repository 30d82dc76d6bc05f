"""RUN means the same for every command: a folder, or the name of a run in runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main

from lmscale.cli.app import app
from lmscale.cli.main import main
from lmscale.errors import ConfigError
from lmscale.files.locations import find_run

# What a command wants beside RUN.
MORE = {
    "export": ("--out", "new"),
    "answer": ("--question", "What?", "--context", "text"),
    "prune": ("half", "--share", "0.5"),
    "distill": ("small",),
    "quantize": ("--bits", "8", "--out", "new"),
    "show tokens": ("--text", "A text."),
    "show next": ("--text", "A text."),
    "show attention": ("--text", "A text."),
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo", "elsewhere/demo", "runs/odd@5"):
        (tmp_path / folder / "checkpoints/step-000000007").mkdir(parents=True)
        (tmp_path / folder / "config.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("said", "folder"),
    [
        ("demo", "runs/demo"),
        ("runs/demo", "runs/demo"),
        ("elsewhere/demo", "elsewhere/demo"),
        ("odd@5", "runs/odd@5"),
        ("nothing", "nothing"),
    ],
)
def test_a_run_is_its_folder_or_its_name_in_runs(place, said, folder):
    assert find_run(Path(said)) == Path(folder)


@pytest.mark.parametrize("said", ["demo@7", "runs/demo@7", "runs/demo/checkpoints/step-000000007"])
def test_a_step_with_it_is_told_with_the_option_that_takes_it(place, said):
    with pytest.raises(ConfigError, match=r"named alone, runs/demo\. .* by --step 7\."):
        find_run(Path(said))


def test_every_command_that_takes_a_run_takes_its_name(place, capsys):
    """Each comes to what this run lacks: it names it by its folder."""

    def commands(group, words=()):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, (*words, name))
            elif any(p.name == "run" and p.required for p in command.params):
                yield (*words, name)

    found = list(commands(typer.main.get_command(app)))
    assert len(found) > 8
    for words in found:
        (place / "text").write_text("A text.")
        assert main([*words, "demo", *MORE.get(" ".join(words), ())]) == 2, words
        assert "runs/demo" in capsys.readouterr().err, words
