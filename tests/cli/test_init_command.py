"""``lmscale init`` as it is typed, and the commands that it says come next."""

import random
from pathlib import Path

import pytest

from lmscale.cli.main import main
from lmscale.config import load_config
from lmscale.corpus.documents import load_corpus_manifest

LETTERS = random.Random(1)
WORDS = ["".join(LETTERS.choices("aeiostrnl", k=LETTERS.randint(3, 9))) for _ in range(2000)]


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    for number in range(200):
        words = random.Random(number).choices(WORDS, k=120)
        (tmp_path / f"raw/{number}.txt").write_text(f"{number} {' '.join(words)}.\n")


def test_the_written_configuration_builds_its_data_by_the_commands_that_are_printed(capsys):
    assert main(["init", "raw", "--name", "owls", "--gpus", "0", "--yes"]) == 0
    printed = capsys.readouterr().out
    commands = [line.split()[1:] for line in printed.splitlines() if line.startswith("  lmscale ")]
    assert [" ".join(each[:2]) for each in commands] == [
        "corpus build",
        "tokenizer train",
        "shards build",
        "stream show",
        "launch local",
        "evaluate runs/owls",
    ]
    assert "200 files, 200 documents" in printed
    for command in commands[:4]:
        assert main(command) == 0
    config = load_config("owls.yaml")
    manifest = load_corpus_manifest(Path(config.corpus.folder, "owls"))
    assert manifest.documents("heldout") >= 5
    for ranks in (1, 8):
        assert main(["config", "show", "owls.yaml", "--nproc", str(ranks)]) == 0


def test_files_behind_a_source_s_name_are_a_source_with_its_weight_and_its_held_out_set(
    tmp_path, capsys
):
    (tmp_path / "raw/a=b.txt").write_text("a name with = in it, which is a file. " * 40)
    few = ["few=raw/1*.txt", "few=raw/20.txt"]
    assert main(["init", "many=raw/[3-9]*.txt", *few, "--gpus", "0", "--yes"]) == 0
    said = capsys.readouterr().out  # files that are given to a source twice are both its own
    assert "source many: 77 files" in said and "source few: 112 files" in said
    config = load_config("mytext.yaml")
    assert [*config.corpus.sources] == [*config.stream.sources] == ["many", "few"]
    assert config.evaluation.sets == {
        name: f"data/mytext/shards/{name}/heldout" for name in ("many", "few")
    }
    assert len(config.corpus.sources["few"].inputs) == 2
    many, few = (config.stream.sources[name].weight for name in ("many", "few"))
    assert many + few == pytest.approx(1, abs=0.01) and 0.3 < many < 0.5 < few  # 78 and 112 files
    assert main(["corpus", "build", "mytext.yaml"]) == 0
    for source in ("many", "few"):
        manifest = load_corpus_manifest(Path(config.corpus.folder, source))
        assert manifest.documents("heldout") > 0
    assert main(["init", "raw/a=b.txt", "many=raw/[3-9]*.txt", "--name", "two", "--yes"]) == 0
    assert [*load_config("two.yaml").corpus.sources] == ["two", "many"]


@pytest.mark.parametrize("name", ["on", "null", "007", "1e5", "0x1F"])
def test_a_name_that_yaml_would_read_as_something_else_stays_one(name):
    assert main(["init", "raw/*.txt", "--name", name, "--gpus", "0", "--yes"]) == 0
    config = load_config(f"{name}.yaml")
    assert [*config.corpus.sources] == [*config.stream.sources] == [*config.evaluation.sets]
    assert [*config.corpus.sources] == [config.run.name] == [name]


def test_what_is_there_is_not_replaced_and_nothing_to_look_at_is_told(tmp_path, capsys):
    (tmp_path / "owls.yaml").write_text("mine")
    for arguments, said in [
        (["raw", "--name", "owls"], "owls.yaml exists, and nothing is replaced"),
        (["raw", "--name", "a/b"], "letters, digits"),
        (["none"], "no such file"),
        ([], "No files"),
        (["raw", "--parameters", "big"], "125M"),
        (["raw", "--out", "none/x.yaml"], "cannot be written"),
    ]:
        assert main(["init", *arguments, "--yes"]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "owls.yaml").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owls.yaml", "raw"]


def test_on_a_terminal_what_no_option_says_is_asked(monkeypatch, capsys):
    answers = iter(["owls", "8xH100", "25M"])
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(
        "typer.prompt", lambda question, default: asked.append(question) or next(answers)
    )
    assert main(["init", "raw/*.txt"]) == 0
    assert asked == ["Name of the run", "GPUs, such as 8xH100", "Parameters of the model"]
    config = load_config("owls.yaml")
    assert config.model.width == 512
    assert [each.files for each in config.corpus.sources["owls"].inputs] == ["raw/*.txt"]
    assert "owls.yaml is written" in capsys.readouterr().out
