"""The page of Python and the notebook run as they stand, where ``runs/demo`` is a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_processes import ROOT
from tiny_run import launch, tiny_config, write_tiny_config

import lmscale

PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "examples" / "look_at_a_run.ipynb"
MOST_LINES = 5  # of a piece of the page, without its import


@pytest.fixture(scope="module")
def place(tiny_data: Path, tmp_path_factory) -> Path:
    """A folder with a run of 6 steps on 2 ranks, of two sources, as ``runs/demo``."""
    folder = tmp_path_factory.mktemp("python")
    sets = {f"evaluation.sets.{name}": str(tiny_data / f"shards/{name}/heldout") for name in "ab"}
    changes = {"train.steps": 6, **sets}
    (folder / "configs").mkdir()
    path = write_tiny_config(folder / "configs/demo.yaml", tiny_data, folder / "runs/demo", changes)
    ended = launch(path, 2)
    assert ended.code == 0, ended.output
    return folder


def pieces() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def cells() -> list[dict]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_every_piece_of_the_page_has_five_lines_and_runs_on_a_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict = {}
    for piece in pieces():
        lines = [line for line in piece.splitlines() if line and not line.startswith("import ")]
        assert len(lines) <= MOST_LINES, piece
        exec(compile(piece, str(PAGE), "exec"), names)
    assert len(pieces()) == 6
    assert names["status"].step == 6
    assert sorted(names["losses"]) == [1, 2, 3, 4, 5, 6]
    assert names["row"].step == 2  # which the page says of step 3
    assert names["samples"].tokens.shape == (12, 33)
    assert set(names["weights"]) >= {name for name, _ in names["run"].model.named_parameters()}
    assert "'tokens': (3, 33)" in capsys.readouterr().out  # of a micro-batch


def test_every_cell_of_the_notebook_runs_and_has_kept_what_it_gave(place, monkeypatch):
    monkeypatch.chdir(place)
    names: dict = {}
    for number, cell in enumerate(cells(), start=1):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        assert cell["execution_count"] == number
        assert not [each for each in cell["outputs"] if each["output_type"] == "error"]
    printing = [cell for cell in cells() if "print(" in "".join(cell["source"])]
    assert all(cell["outputs"] for cell in printing)


def test_the_samples_of_a_step_are_those_that_its_ledger_has_the_digest_of(place):
    with lmscale.open_run_stream(place / "runs/demo") as stream:
        for row in lmscale.read_ledger(place / "runs/demo"):
            rows = stream.read_rows(row.first_n, row.samples)
            assert int(rows.digests.sum()) % 2**63 == row.digest


def test_the_ranks_steps_are_together_what_the_run_will_read(place, tiny_data):
    config = tiny_config(tiny_data, place / "runs/other")
    ledger = [row.tokens for row in lmscale.read_ledger(place / "runs/demo")]
    for ranks in (1, 3):
        shares = [
            [batch.targets for batch in lmscale.iterate_steps(config, steps=4, first_step=2, **of)]
            for of in ({"data_rank": rank, "data_ranks": ranks} for rank in range(ranks))
        ]
        assert [sum(parts) for parts in zip(*shares, strict=True)] == ledger[2:6]


def test_a_prompt_of_ids_is_taken_as_it_is_and_the_seed_decides_the_text(place):
    run = lmscale.load_run(place / "runs/demo", device="cpu")
    ids = run.tokenizer.encode("import").tolist()
    once, again, by_text = (
        "".join(lmscale.generate(run, prompt, max_tokens=12, seed=7))
        for prompt in (ids, ids, "import")
    )
    assert once == again == by_text
    assert once != "".join(lmscale.generate(run, ids, max_tokens=12, seed=8))


def test_a_prompt_of_ids_ends_where_it_is_told_to_as_a_text_does(place):
    run = lmscale.load_run(place / "runs/demo", device="cpu")
    ids = run.tokenizer.encode("import").tolist()
    how = {"max_tokens": 12, "seed": 7}
    text = "".join(lmscale.generate(run, ids, **how))
    stop = text[3:6]
    for prompt in (ids, "import"):
        for stops in (stop, [stop], ("\0", stop)):  # one text is no row of letters
            said = "".join(lmscale.generate(run, prompt, stops=stops, **how))
            assert said == text[: text.index(stop)]
    end = run.tokenizer.piece(run.tokenizer.eos_id)
    meant, plain = (
        lmscale.generate(run, prompt, special_tokens=True, is_greedy=True, max_tokens=3)
        for prompt in (f"import{end}", [*ids, run.tokenizer.eos_id])
    )
    assert "".join(meant) == "".join(plain)


def test_a_run_is_asked_for_nothing_that_is_not_there(place, tiny_data):
    folder, config = place / "runs/demo", tiny_config(tiny_data, place / "runs/other")
    run = lmscale.load_run(folder, device="cpu")
    last = run.model.vocab_size - 1
    with lmscale.open_run_stream(folder) as stream:
        asked = {
            "suffix goes with a prompt of text": lambda: lmscale.generate(run, [5], suffix="x"),
            f"id {last + 1} is none of the model's": lambda: lmscale.generate(run, [last + 1]),
            "id -1 is none of the model's": lambda: lmscale.generate(run, [5, -1]),
            "weights = 'mean': give one of trained, average": lambda: lmscale.load_run(
                folder, weights="mean"
            ),
            "data_rank = 2: the ranks of data_ranks = 2 are 0 to 1": lambda: lmscale.iterate_steps(
                config, steps=1, data_rank=2, data_ranks=2
            ),
            "first_step = -1: it must be": lambda: lmscale.iterate_steps(
                config, steps=1, first_step=-1
            ),
            "data_ranks = 0: it must": lambda: lmscale.iterate_steps(config, steps=1, data_ranks=0),
            "numbered from 0 on": lambda: stream.read_rows(-1, 2),
        }
        for expected, ask in asked.items():
            with pytest.raises(lmscale.ConfigError, match=expected):
                ask()


def test_weights_are_the_model_s(place):
    weights = lmscale.read_weights(place / "runs/demo", step=6)
    model = lmscale.load_run(place / "runs/demo", step=6, device="cpu").model
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter), name


def test_a_mistake_is_one_error_of_lmscale(place, tmp_path):
    for ask in (lmscale.read_status, lmscale.read_metrics, lmscale.load_run, lmscale.read_weights):
        with pytest.raises(lmscale.LmscaleError, match="is not a run's folder"):
            ask(tmp_path)
    with pytest.raises(lmscale.LmscaleError, match="step"):
        lmscale.read_weights(place / "runs/demo", step=5_000)


def test_names_come_without_torch_and_all_of_them_are_there():
    program = (
        "import lmscale, sys; assert 'pydantic' not in sys.modules; "
        "names = set(dir(lmscale)); from lmscale import api; assert names >= set(api.__all__); "
        "[getattr(lmscale, name) for name in api.__all__]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        lmscale.load_runs  # noqa: B018
