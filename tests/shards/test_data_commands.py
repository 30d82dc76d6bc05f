"""The commands from raw text to shards work one after the other, and say what they did."""

import json

import pytest
from typer.testing import CliRunner

from launcher.outcome import Outcome
from lmscale.cli import corpus, launch, shards, stream, tokenizer
from lmscale.config import load_config
from lmscale.errors import ConfigError, DataError
from lmscale.shards.stale import find_stale_data


def run(app, *arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def config(tmp_path):
    lines = [json.dumps({"text": f"Document number {n} of a few. 第{n}篇。"}) for n in range(300)]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text(f"""
run: {{name: t}}
corpus:
  folder: {tmp_path}/corpus
  sources: {{docs: {{inputs: ["{tmp_path}/*.jsonl"]}}}}
tokenizer: {{folder: {tmp_path}/tokenizer, vocab_size: 320}}
shards: {{folder: {tmp_path}/shards, processes: 1}}
""")
    return path


def test_from_raw_text_to_verified_shards(config, tmp_path):
    assert "built" in run(corpus.app, "build", config)
    assert "already built" in run(corpus.app, "build", config)
    built = json.loads(run(corpus.app, "build", config, "--force", "--json"))
    assert built == json.loads(run(corpus.app, "show", config, "--json"))
    assert built["docs"]["documents_read"] == 300
    assert "dropped: none" in run(corpus.app, "show", config)
    assert "320 pieces" in run(tokenizer.app, "train", config)
    assert "bpe, 320 pieces" in run(tokenizer.app, "show", config)
    shown = json.loads(run(tokenizer.app, "show", config, "--json", "--text", "第1篇"))
    assert len(shown["ids"]) == len(shown["pieces"])
    built = json.loads(run(shards.app, "build", config, "--json"))
    train = built[f"{tmp_path}/shards/docs/train"]
    assert train["source"] == "docs"
    assert train["shards"][0]["name"] == "docs-000000.tar"
    assert "already built" in run(shards.app, "build", config)
    assert ": sound" in run(shards.app, "verify", tmp_path / "shards")
    assert ": sound" in run(shards.app, "verify", tmp_path / "shards", "--quick")
    assert json.loads(run(shards.app, "show", tmp_path / "shards", "--json")) == built
    assert "tokens (uint16)" in run(shards.app, "show", tmp_path / "shards" / "docs" / "train")


def test_a_build_for_best_fit_leaves_the_window_counts(config, tmp_path):
    with open(config, "a") as file:
        file.write("stream:\n  packing: best_fit\n  sequence_length: 64\n")
        file.write(f"  cache: {{folder: {tmp_path}/cache}}\n")
    run(corpus.app, "build", config)
    run(tokenizer.app, "train", config)
    for _ in range(2):
        run(shards.app, "build", config)
        folder = tmp_path / "shards" / "docs" / "train"
        kept = json.loads((folder / "windows-best_fit-64.json").read_text())
        assert kept["manifest"] == json.loads((folder / "manifest.json").read_text())["fingerprint"]
    assert ": sound" in run(shards.app, "verify", tmp_path / "shards")


def test_steps_out_of_order_say_what_to_run_first(config, tmp_path):
    with pytest.raises(DataError, match="lmscale corpus build CONFIG"):
        run(tokenizer.app, "train", config)
    with pytest.raises(DataError, match="lmscale tokenizer train CONFIG"):
        run(shards.app, "build", config)
    with pytest.raises(DataError, match="lmscale shards build CONFIG"):
        run(shards.app, "verify", tmp_path)
    (tmp_path / "empty.yaml").write_text("run: {name: t}")
    for app, command in ((corpus.app, "build"), (tokenizer.app, "train")):
        with pytest.raises(ConfigError, match="names no source"):
            run(app, command, tmp_path / "empty.yaml")


def test_verify_fails_with_every_problem(config, tmp_path):
    run(corpus.app, "build", config)
    run(tokenizer.app, "train", config)
    run(shards.app, "build", config)
    for path in (tmp_path / "shards").rglob("*.tar"):
        path.unlink()
    with pytest.raises(DataError) as caught:
        run(shards.app, "verify", tmp_path / "shards")
    assert all("missing" in problem for problem in caught.value.problems)


def test_a_source_name_that_is_no_folder_name_is_refused(config):
    config.write_text(config.read_text().replace("{docs:", "{../docs:"))
    with pytest.raises(ConfigError, match="names become folders and shards"):
        run(corpus.app, "build", config)


def test_what_was_built_from_other_settings_is_told_by_who_goes_on_with_it(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.local.run_ranks", lambda plans: Outcome(exit_code=0))
    with open(config, "a") as file:
        file.write(f"stream: {{sources: {{docs: {{shards: {tmp_path}/shards/docs/train}}}}}}\n")

    def warnings(app, *arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        return [line for line in result.stderr.splitlines() if line.startswith("warning: ")]

    other = ["--set", "corpus.heldout_fraction=0.3"]
    run(corpus.app, "build", config)
    assert warnings(tokenizer.app, "train", config) == []
    assert warnings(shards.app, "build", config) == []
    assert find_stale_data(load_config(config)) == []
    expected = (
        f"{tmp_path}/corpus/docs: was built from other settings (heldout_fraction) than the "
        "configuration's, and is used as it is."
    )
    commands = [(tokenizer.app, "train"), (shards.app, "build"), (stream.app, "show")]
    for app, command in [*commands, (launch.app, "local")]:
        (told,) = warnings(app, command, config, *other)
        assert told.startswith(f"warning: {expected}")
    run(corpus.app, "build", config, *other, "--force")
    (told,) = find_stale_data(load_config(config, other[1:]))
    assert told.startswith(
        f"{tmp_path}/shards/docs/train: was built from other documents or with another "
        f"shards.max_bytes or shards.block_tokens than now in {tmp_path}/corpus/docs/train, and"
    )
