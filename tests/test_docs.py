"""The documents: links resolve, commands and settings exist, and the README's commands run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import typer.main
import yaml
from config_reference import PAGE, RULES_PAGE, replace_reference, replace_rules
from forked_processes import run_process

import lmscale
from lmscale.cli.app import app
from lmscale.config import load_config, parse_config
from lmscale.model.family import account_model

ROOT = Path(lmscale.__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "slurm").glob("*.md"))]
README = ROOT / "README.md"
OWN_TEXT = ROOT / "docs" / "your-own-text.md"


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Every line of the page's bash blocks, split as a shell would."""
    lines = (line for block in blocks(path, "bash") for line in block.splitlines())
    return [shlex.split(line) for line in lines if line.strip()]


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lmscale_commands() -> list[tuple[str, list[str]]]:
    every = ((path, words) for path in PAGES for words in commands(path))
    return [(page_name(path), words[1:]) for path, words in every if words[0] == "lmscale"]


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_every_link_leads_to_a_file_and_a_heading(path):
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path))
    for link in links:
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{page_name(path)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page_name(path)}: no heading for {link}"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_every_file_of_the_repository_that_a_page_names_exists(path):
    named = re.findall(
        r"(?<![\w./-])((?:lmscale|launcher|tests|benchmarks|configs|examples)/[\w/]+\.\w+)",
        prose(path),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page_name(path)} names {missing}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=page_name)
def test_every_page_is_linked_from_an_index(path):
    indices = [ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"]
    if path == indices[0]:
        return
    linked = {
        (index.parent / link).resolve()
        for index in indices
        for link in re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    }
    assert path in linked


@pytest.mark.parametrize(
    ("page", "words"), lmscale_commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_in_the_documents_exists_with_its_options(page, words):
    command = typer.main.get_command(app)
    rest = words[: words.index(">")] if ">" in words else list(words)
    while subcommands := getattr(command, "commands", None):
        usual = getattr(command, "usual", None)  # of a group that is a command of its own as well
        name = usual if usual is not None and rest[0] not in subcommands else rest.pop(0)
        assert name in subcommands, f"{page}: lmscale {shlex.join(words)}"
        command = subcommands[name]
    command.make_context("lmscale", rest)  # raises a usage error for what it does not know
    config = next((word for word in rest if word.startswith("configs/")), None)
    if config is not None:
        settings = [rest[at + 1] for at, word in enumerate(rest) if word == "--set"]
        load_config(ROOT / config, settings)


def names_in(path: Path) -> set[str]:
    """Functions, classes, their methods, and constants of a module: ``Stream.read_rows``."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_what_the_page_of_places_names_is_where_it_says():
    """``path.py`: `Name``, or several names after one path."""
    text = (ROOT / "docs" / "where.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)", text)
    assert len(places) > 15
    for path, listed in places:
        missing = set(re.findall(r"`([\w.]+)`", listed)) - names_in(ROOT / path)
        assert not missing, f"{path} has no {missing}"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_a_whole_configuration_in_a_page_is_valid(path):
    for block in blocks(path, "yaml"):
        if re.search("^run:", block, re.MULTILINE):
            parse_config(block, name=page_name(path))


def test_the_lines_for_another_model_fit_the_page_s_configuration():
    (config,) = (block for block in blocks(OWN_TEXT, "yaml") if "run:" in block)
    rows = re.findall(r"^\|.*`model: \{.*$", prose(OWN_TEXT), re.MULTILINE)
    for row in rows:
        tree = yaml.safe_load(config)
        for line in re.findall(r"`(\w+: \{.*?\})`", row):
            ((section, keys),) = yaml.safe_load(line.replace(", …", "")).items()
            tree[section] = (tree["stream"] | keys) if section == "stream" else keys
        family = parse_config(yaml.safe_dump(tree)).model.family
        assert f"family: {family}," in row
    assert len(rows) == 4


def test_the_tables_of_the_configuration_page_are_what_the_code_says():
    page = PAGE.read_text(encoding="utf-8")
    assert replace_reference(page) == page, "run python tests/config_reference.py"


def test_the_page_of_beginnings_says_what_may_differ_as_the_code_does():
    page = RULES_PAGE.read_text(encoding="utf-8")
    assert replace_rules(page) == page, "run python tests/config_reference.py"


def test_the_configuration_page_tells_each_model_s_size_step_and_stage():
    rows = re.findall(
        r"^\| \[([\w.]+\.yaml)\].*\| ([\d,]+) \| ([\d,]+)(?: tokens)? \| (\d) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == {path.name for path in (ROOT / "configs").glob("*.yaml")}
    for name, parameters, tokens, stage in rows:
        config = load_config(ROOT / "configs" / name)
        count = account_model(config.model, config.sizes)
        told = (f"{count.total:,}", f"{config.tokens_per_step:,}", str(config.engine.zero_stage))
        assert (parameters, tokens, stage) == told, name


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_every_make_target_in_the_documents_exists(path):
    """``make -n`` says what would be done, and fails for a target that is not there."""
    for words in commands(path):
        if words[0] == "make":
            done = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_the_chinese_readme_has_the_same_commands_outputs_and_links():
    chinese = ROOT / "README.zh-CN.md"
    assert commands(chinese) == commands(README)
    drawing = "stream"  # the way of the data, whose words are translated
    same = [block for block in blocks(README, "text") if f" {drawing}: " not in block]
    assert [block for block in blocks(chinese, "text") if f" {drawing}：" not in block] == same
    english = set(re.findall(r"\]\(([^)\s]+)\)", prose(README)))
    assert set(re.findall(r"\]\(([^)\s]+)\)", prose(chinese))) ^ english == {
        "README.md",
        "README.zh-CN.md",
    }


def test_the_readme_names_the_two_commands_first():
    assert commands(README)[:2] == [["make", "demo"], ["make", "test"]]


def run(words: list[str], folder: Path) -> str:
    """Run one ``lmscale`` command in a fork (forked_processes.py), and return what it prints."""
    errors = folder / "stderr.txt"
    code, said = run_process("command", words, errors=errors, folder=folder)
    assert code == 0, f"lmscale {shlex.join(words)}\n{said}{errors.read_text()}"
    return said


def turn_down(folder: Path) -> None:
    """configs/demo.yaml in ``folder``: the demo's, made small by --set and written by itself."""
    settings = {
        "tokenizer.vocab_size": 512,
        "shards.max_bytes": 100_000,
        "shards.block_tokens": 8192,
        "shards.processes": 1,
        "stream.sequence_length": 64,
        "stream.workers": 0,
        "model.layers": 2,
        "model.width": 32,
        "model.heads": 4,
        "model.kv_heads": 2,
        "engine.schedule.warmup_steps": 1,
        "engine.schedule.decay_steps": 2,
        "train.steps": 4,
        "evaluation.max_windows": 4,
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    shown = run(["config", "show", str(ROOT / "configs/demo.yaml"), *overrides], folder)
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text(shown, encoding="utf-8")


def write_topics(path: Path) -> None:
    """The smallest part of what `examples/pydocs.py` writes."""
    path.parent.mkdir(parents=True)
    lines = (json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics))
    path.write_text("".join(lines), encoding="utf-8")


def test_the_readme_s_table_beside_others_is_the_comparison_s():
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = [
        line for line in README.read_text(encoding="utf-8").splitlines() if "torchtitan" in line
    ]
    (head,) = (row for row in rows if row.startswith("| | lmscale |"))
    table = page[page.index(head) :].split("\n\n")[0]
    assert table in README.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.ranks
def test_the_readme_s_commands_run_after_a_small_demo(tmp_path, monkeypatch, capsys):
    turn_down(tmp_path)
    write_topics(tmp_path / "data/demo/raw/topics.jsonl")
    for group, verb in (("corpus", "build"), ("tokenizer", "train"), ("shards", "build")):
        run([group, verb, "configs/demo.yaml"], tmp_path)
    launch = [sys.executable, "-m", "lmscale", "launch", "local", "configs/demo.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Interpreters of their own: nothing here has loaded what the launcher and its rank need.
    ended = subprocess.run([*launch, "--nproc", "1"], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0
    printed = {}
    has_transformers = sys.version_info >= (3, 11)
    for words in commands(README):
        if words[0] == "lmscale":
            if words[1] != "export" or has_transformers:
                printed[" ".join(words[1:3])] = run(words[1:], tmp_path)
        else:  # what makes the environment that this test already runs in
            assert words[0] in ("make", "source", "pip"), f"this test does not know {words[0]}"
    assert "runs/demo: clean. 4 steps" in printed["runs audit"]
    assert printed["runs status"].splitlines()[1].split() == ["state", "finished"]
    assert printed["generate runs/demo"].startswith("class Path")
    assert len(printed["stream digest"].splitlines()) == 3
    if has_transformers:  # what the export says to try next
        (line,) = (each for each in printed["export runs/demo"].splitlines() if "python -c" in each)
        monkeypatch.chdir(tmp_path)
        exec(shlex.split(line)[-1], {})  # noqa: S102
        assert capsys.readouterr().out.startswith(("A text", "<s>A text"))


def test_the_commands_that_build_data_from_own_text_run(tmp_path):
    """Those of docs/your-own-text.md that need no torch, on what its first one writes."""
    write_topics(tmp_path / "data/raw/notes/topics.jsonl")
    (tmp_path / "data/raw/notes/one.txt").write_text(topics["lambda"], encoding="utf-8")
    building = [
        words[1:]
        for words in commands(OWN_TEXT)
        if words[1] in ("init", "corpus", "tokenizer", "shards")
    ]
    assert [words[:2] for words in building] == [
        ["init", "data/raw/notes"],
        ["corpus", "build"],
        ["tokenizer", "train"],
        ["shards", "build"],
        ["shards", "verify"],
    ]
    for words in building:
        printed = run(words, tmp_path)
    assert "data/mytext/shards/mytext/train: 1 shard, " in printed


@pytest.mark.parametrize("name", ["model/toy_sums", "objective/toy_halves"])
def test_the_page_on_extending_shows_the_packages_that_are_trained_in_less_than_60_lines(name):
    shown = blocks(ROOT / "docs" / "extending.md", "python")
    (first,) = ROOT.glob(f"tests/{name}.py")
    (second,) = ROOT.glob(f"tests/{name}_*.py")
    sources = [path.read_text(encoding="utf-8").rstrip() for path in (first, second)]
    assert all(source in [block.rstrip() for block in shown] for source in sources)
    lines = [line for source in sources for line in source.splitlines() if line]
    assert len(lines) < 60
