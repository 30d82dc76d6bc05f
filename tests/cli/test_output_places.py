"""An output folder that cannot be one is the user's mistake: exit code 2, no traceback."""

import itertools
import json

import pytest

from lmscale.cli.main import main


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A configuration whose corpus and tokenizer are built."""
    root = tmp_path_factory.mktemp("places")
    lines = [json.dumps({"text": f"Document number {n} of a few."}) for n in range(60)]
    (root / "raw.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = root / "c.yaml"
    config.write_text(f"""
run: {{name: t}}
corpus: {{folder: {root}/corpus, sources: {{docs: {{inputs: ["{root}/*.jsonl"]}}}}}}
tokenizer: {{folder: {root}/tokenizer, vocab_size: 300}}
shards: {{folder: {root}/shards, processes: 1}}
""")
    assert main(["corpus", "build", str(config)]) == 0
    assert main(["tokenizer", "train", str(config)]) == 0
    return config


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *itertools.product(
            ("corpus build", "tokenizer train", "shards build"), ("x.txt", "x.txt/below")
        ),
        ("corpus build", "n" * 300),
        ("tokenizer train", "n" * 300),
    ],
)
def test_a_place_that_cannot_be_a_folder_is_told(built, tmp_path, capsys, command, place):
    (tmp_path / "x.txt").write_text("")
    group = command.split()[0]
    key = f"{group}.folder={tmp_path / place}"
    assert main([*command.split(), str(built), "--set", key]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / place)[:60] in error
