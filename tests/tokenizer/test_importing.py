"""Whatever holds a tokenizer becomes a run's tokenizer folder, or one line says why it does not."""

import json
import re
import sys

import pytest
import sentencepiece
from others import (
    ENGLISH,
    TEXTS,
    as_library,
    train_byte_level,
    train_sentencepiece,
    train_unigram,
    train_wordpiece,
    write_json,
)
from typer.testing import CliRunner

from lmscale.cli.app import app
from lmscale.config.corpus import CorpusConfig
from lmscale.config.data import TokenizerConfig
from lmscale.config.special_tokens import BYTE_BPE_PIECES
from lmscale.corpus.build import build_corpus
from lmscale.errors import ConfigError, DataError
from lmscale.files.tokenizer_files import has_tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.codec import load_tokenizer, save_tokenizer
from lmscale.tokenizer.importing import import_tokenizer, read_foreign
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.showing import render_pieces
from lmscale.tokenizer.train import find_trained, train_model, train_tokenizer


@pytest.fixture(scope="module")
def sentencepiece_model():
    return train_sentencepiece(pad_id=-1)


@pytest.fixture(scope="module")
def bert():
    return train_wordpiece().to_str()


@pytest.fixture(scope="module")
def gpt2():
    return train_byte_level().to_str()


def test_a_sentencepiece_model_becomes_a_folder_that_loads_as_it_was(sentencepiece_model, tmp_path):
    path = tmp_path / "theirs" / "spiece.model"
    path.parent.mkdir()
    path.write_bytes(sentencepiece_model)
    tokenizer = import_tokenizer(path, tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    assert loaded.encode(TEXTS[0]).tolist() == processor.encode(TEXTS[0])
    assert loaded.fingerprint == tokenizer.fingerprint
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["format"], meta["kind"]) == ("sentencepiece", "bpe")
    assert meta["special_ids"] == {"unk": 0, "bos": 1, "eos": 2}
    assert meta["made_by"]["imported_from"] == "theirs/spiece.model"
    assert has_tokenizer(tmp_path / "out")
    # What it is known by covers the special ids, which somebody chose.
    other = import_tokenizer(path, tmp_path / "other", chosen={"eos": "<s>", "bos": "</s>"})
    assert (other.eos_id, other.bos_id) == (1, 2) and other.fingerprint != tokenizer.fingerprint
    meta["special_ids"]["eos"] = 1
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="its sha256 is not the fingerprint in meta.json"):
        load_tokenizer(tmp_path / "out")


def test_special_ids_come_from_the_files_beside_or_the_template_or_are_asked_for(
    bert, gpt2, tmp_path
):
    write_json(tmp_path / "bert" / "tokenizer.json", json.loads(bert))
    known = as_library(bert).get_vocab()
    of_template = read_foreign(tmp_path / "bert")
    ends = {"bos": known["[CLS]"], "eos": known["[SEP]"]}
    assert of_template.special_ids == {"unk": known["[UNK]"], **ends}
    names = {"sep_token": {"content": "[SEP]"}, "cls_token": "[CLS]", "pad_token": "[PAD]"}
    write_json(tmp_path / "bert" / "special_tokens_map.json", names)
    assert read_foreign(tmp_path / "bert").special_ids["pad"] == known["[PAD]"]
    write_json(tmp_path / "bert" / "tokenizer_config.json", {"eos_token": "[MASK]"})
    assert read_foreign(tmp_path / "bert").eos_id == known["[MASK]"]
    chosen = read_foreign(tmp_path / "bert", {"eos": "[PAD]"})
    assert (chosen.eos_id, chosen.bos_id) == (known["[PAD]"], known["[CLS]"])

    path = tmp_path / "gpt2" / "tokenizer.json"
    write_json(path, json.loads(gpt2))
    with pytest.raises(DataError, match=re.escape("--eos PIECE") + r".*pieces: <\|end\|>\."):
        read_foreign(path)
    with pytest.raises(ConfigError, match="--eos </s>: the tokenizer has no such piece"):
        read_foreign(path, {"eos": "</s>"})
    assert read_foreign(path, needs_eos=False).special_ids == {}
    write_json(tmp_path / "gpt2" / "generation_config.json", {"eos_token_id": [0, 5]})
    write_json(tmp_path / "gpt2" / "meta.json", {"name": "of another program"})
    assert read_foreign(path).special_ids == {"eos": 0}
    write_json(tmp_path / "gpt2" / "config.json", {"bos_token_id": 500, "pad_token_id": -1})
    assert read_foreign(path).special_ids == {"bos": 500, "eos": 0}
    write_json(tmp_path / "gpt2" / "tokenizer_config.json", {"bos_token": None})
    assert read_foreign(path).special_ids == {"eos": 0}
    write_json(tmp_path / "gpt2" / "config.json", {"pad_token_id": 9000})
    with pytest.raises(ConfigError, match=r"config.json: its pad_token_id is 9000.*--pad PIECE"):
        read_foreign(path)
    tree = json.loads(train_unigram().to_str())
    write_json(tmp_path / "u" / "tokenizer.json", {**tree, "added_tokens": []})
    with pytest.raises(DataError, match="special pieces: </s>, <pad>, <unk>"):
        read_foreign(tmp_path / "u")


def test_another_tokenizer_in_the_folder_stays_unless_forced(sentencepiece_model, gpt2, tmp_path):
    (tmp_path / "a.model").write_bytes(sentencepiece_model)
    write_json(tmp_path / "b.json", json.loads(gpt2))
    out = tmp_path / "out"
    first = import_tokenizer(tmp_path / "a.model", out)
    before = (out / "tokenizer.model").stat().st_ino
    assert import_tokenizer(tmp_path / "a.model", out).fingerprint == first.fingerprint
    assert (out / "tokenizer.model").stat().st_ino == before
    with pytest.raises(DataError, match="holds another tokenizer.*--force"):
        import_tokenizer(tmp_path / "b.json", out, chosen={"eos": "<|end|>"})
    import_tokenizer(tmp_path / "b.json", out, chosen={"eos": "<|end|>"}, force=True)
    assert sorted(each.name for each in out.iterdir()) == ["meta.json", "tokenizer.json"]
    assert load_tokenizer(out).format == "tokenizers"
    import_tokenizer(tmp_path / "a.model", out, force=True)
    assert sorted(each.name for each in out.iterdir()) == ["meta.json", "tokenizer.model"]


def test_a_folder_of_lmscales_own_is_imported_as_it_is(tmp_path):
    model = train_model(iter(ENGLISH[:5]), TokenizerConfig(vocab_size=400))
    own = OwnTokenizer(model, {"kind": "bpe"})
    save_tokenizer(own, tmp_path / "own")
    for path in (tmp_path / "own", tmp_path / "own" / "tokenizer.model"):
        assert isinstance(read_foreign(path), OwnTokenizer)
    with pytest.raises(
        ConfigError, match="--eos <s>: .*lmscale's own, whose eos is </s> and stays"
    ):
        read_foreign(tmp_path / "own", {"eos": "<s>"})
    assert read_foreign(tmp_path / "own", {"eos": "</s>"}).eos_id == own.eos_id
    (tmp_path / "own" / "meta.json").unlink()  # a model alone is what SentencePiece says
    assert read_foreign(tmp_path / "own").format == "sentencepiece"
    assert read_foreign(tmp_path / "own").fingerprint != own.fingerprint


def test_gpt2s_and_berts_older_files_give_what_their_tokenizer_json_gives(bert, gpt2, tmp_path):
    tree = json.loads(gpt2)
    write_json(tmp_path / "gpt2" / "vocab.json", tree["model"]["vocab"])
    rules = "\n".join(" ".join(rule) for rule in tree["model"]["merges"])
    (tmp_path / "gpt2" / "merges.txt").write_text(f"#version: 0.2\n{rules}\n", encoding="utf-8")
    tokenizer = read_foreign(tmp_path / "gpt2", {"eos": "<|end|>"})
    for text in TEXTS[:-1]:
        expected = as_library(gpt2).encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == expected
    windows = f"#version: 0.2\n{rules}\n".replace("\n", "\r\n")
    (tmp_path / "gpt2" / "merges.txt").write_bytes(windows.encode())
    write_json(tmp_path / "gpt2" / "tokenizer_config.json", {"add_prefix_space": True})
    prefixed = read_foreign(tmp_path / "gpt2", {"eos": "<|end|>"})
    assert prefixed.encode("the end").tolist() == tokenizer.encode(" the end").tolist()
    assert prefixed.losses == ("a space is put before a text",)
    pieces = json.loads(bert)["model"]["vocab"]
    (tmp_path / "bert").mkdir()
    lines = sorted(pieces, key=pieces.__getitem__)
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(tmp_path / "bert" / "tokenizer_config.json", {"do_lower_case": True})
    tokenizer = read_foreign(tmp_path / "bert", {"eos": "[SEP]"})
    for text in TEXTS[:-1]:
        expected = as_library(bert).encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == expected
    config = {"tokenizer_class": "Qwen2Tokenizer"}
    write_json(tmp_path / "gpt2" / "tokenizer_config.json", config)
    with pytest.raises(DataError, match="slow tokenizer, of the class Qwen2Tokenizer"):
        read_foreign(tmp_path / "gpt2", {"eos": "<|end|>"})


def test_tokens_that_a_folder_adds_count_in_the_vocabulary(gpt2, tmp_path):
    tree = json.loads(gpt2)
    write_json(tmp_path / "tokenizer.json", tree)
    size = as_library(gpt2).get_vocab_size(with_added_tokens=True)
    more = {"content": "<|tool|>", "special": True}
    config = {"eos_token": "<|tool|>", "added_tokens_decoder": {str(size): more}}
    write_json(tmp_path / "tokenizer_config.json", config)
    tokenizer = read_foreign(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (size + 1, size)
    assert size not in tokenizer.encode("<|tool|>")
    config["added_tokens_decoder"] = {str(size + 5): more}
    write_json(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(DataError, match=f"adds '<|tool|>' as id {size + 5}, which does not follow"):
        read_foreign(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    with pytest.raises(DataError, match="its folder adds 1 tokens"):
        read_foreign(tmp_path)


BAD = {
    "nothing.model": (None, "there is no such file or folder"),
    "cut.model": (lambda model, tree: model[: len(model) // 2], "Not a SentencePiece model"),
    "empty.model": (lambda model, tree: b"", "Not a SentencePiece model"),
    "mine.yaml": (lambda model, tree: b"run: {}", "a .yaml file is no tokenizer.*Give a"),
    "other.json": (lambda model, tree: b'{"a": 1}', "Not a tokenizer.json.*has no model"),
    "cut.json": (lambda model, tree: tree[: len(tree) // 2], "Not a tokenizer.json"),
    "new.json": (
        lambda model, tree: tree.replace(b'"type": "BPE"', b'"type": "Newer"'),
        "Not a tokenizer.json",
    ),
    "letters.model": (
        lambda model, tree: model.replace("\u2581t".encode(), b"\xe2\x96t\xff"),
        "SentencePiece model",
    ),
    "prefix.json": (
        # tokenizers 0.23 ends the process where a merge lacks the prefix.
        lambda model, tree: tree.replace(
            b'"continuing_subword_prefix": null', b'"continuing_subword_prefix": "##"'
        ),
        "a merge goes on without '##'",
    ),
    "lfs.model": (
        lambda model, tree: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        "a pointer of Git LFS.*git lfs pull",
    ),
    "tiktoken.model": (lambda model, tree: b"IQ== 0\nIg== 1\n" * 99, "a vocabulary of tiktoken"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_tokenizer_is_one_line_and_exit_code_2(
    name, sentencepiece_model, gpt2, tmp_path
):
    make, message = BAD[name]
    path = tmp_path / name
    if make is not None:
        path.write_bytes(make(sentencepiece_model, json.dumps(json.loads(gpt2)).encode()))
    with pytest.raises(DataError, match=message) as caught:
        import_tokenizer(path, tmp_path / "out", chosen={"eos": "<|end|>"})
    assert len(caught.value.problems) == 1 and caught.value.exit_code == 2
    assert name in str(caught.value) and not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match="no tokenizer in it; it holds model.safetensors. Give a"):
        read_foreign(tmp_path)


def test_without_the_package_a_tokenizer_json_says_what_to_install(gpt2, tmp_path, monkeypatch):
    write_json(tmp_path / "tokenizer.json", json.loads(gpt2))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=re.escape("pip install -e '.[hf]' -c constraints.txt")):
        read_foreign(tmp_path, {"eos": "<|end|>"})
    with pytest.raises(DataError, match="needs the package tokenizers"):
        train_byte_bpe(ENGLISH, TokenizerConfig(kind="byte_bpe"), {})


def test_byte_level_bpe_is_trained_alike_every_time_and_no_piece_joins_two_lines():
    config = TokenizerConfig(kind="byte_bpe", vocab_size=900, split_digits=True)
    tokenizer = train_byte_bpe(iter([*ENGLISH, "1234 12 34 1234\n"] * 2), config, {"a": 1})
    again = train_byte_bpe(iter([*ENGLISH, "1234 12 34 1234\n"] * 2), config, {"a": 1})
    assert tokenizer.model == again.model and tokenizer.fingerprint == again.fingerprint
    assert tokenizer.is_exact and tokenizer.kind == "byte_bpe" and tokenizer.vocab_size == 900
    assert [tokenizer.piece(i) for i in range(3)] == list(BYTE_BPE_PIECES.values())
    assert tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 2}
    texts = [tokenizer.decode_bytes([number]) for number in range(900)]
    assert not any(b"\n" in text.rstrip(b"\r\n") and text.strip() for text in texts)
    assert not any(sum(chr(byte).isdigit() for byte in text) > 1 for text in texts)
    grouped = train_byte_bpe(
        iter(["1234 12 34 1234\n"] * 9 + ENGLISH),
        config.model_copy(update={"split_digits": False}),
        {},
    )
    assert grouped.decode_bytes(grouped.encode("123")[:1]) == b"123"
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(
        DataError, match="vocab_size = 50,000 is more than.* at most [0-9,]+ pieces"
    ):
        train_byte_bpe(ENGLISH[:3], config.model_copy(update={"vocab_size": 50_000}), {})
    with pytest.raises(DataError, match="holds no text"):
        train_byte_bpe(iter([]), config, {})
    with pytest.raises(DataError, match=r"at most 259 pieces fit\. Train on more text"):
        train_byte_bpe(iter(["a b c d "]), config, {})


def test_pieces_of_bytes_are_shown_as_the_text_that_they_stand_for():
    tokenizer = train_byte_bpe(iter(ENGLISH), TokenizerConfig(kind="byte_bpe", vocab_size=500), {})
    ids = [*tokenizer.encode(" é\n").tolist(), tokenizer.eos_id]
    shown = render_pieces(tokenizer, ids)
    assert "\\xc3" in shown or "é" in shown
    assert "▁" in shown and "\\n(" in shown and "Ġ" not in shown and "Ã" not in shown
    assert shown.endswith(f" {tokenizer.piece(tokenizer.eos_id)}({tokenizer.eos_id})")


@pytest.mark.parametrize("splits", [True, False])
def test_an_import_keeps_whether_its_own_settings_read_special_tokens_as_text(
    bert, tmp_path, splits
):
    write_json(tmp_path / "tokenizer.json", json.loads(bert))
    write_json(tmp_path / "tokenizer_config.json", {"split_special_tokens": splits})
    assert read_foreign(tmp_path).made_by.get("split_special_tokens", False) is splits


def test_the_commands_import_show_and_compare(sentencepiece_model, bert, tmp_path):
    (tmp_path / "a.model").write_bytes(sentencepiece_model)
    write_json(tmp_path / "bert" / "tokenizer.json", json.loads(bert))
    (tmp_path / "text.txt").write_text(ENGLISH[0] + "\n中文😀\n", encoding="utf-8")
    run = CliRunner()

    def call(*arguments: object) -> str:
        result = run.invoke(app, ["tokenizer", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    out = tmp_path / "out"
    told = call("import", tmp_path / "bert", "--out", out)
    size = as_library(bert).get_vocab_size()
    assert (
        f"tokenizer: {{folder: {out}, vocab_size: {size}, ids: {{mask: 4, cls: 2, sep: 3}}}}"
        in told.replace("\n", "")
    )
    assert "exact" in told and "no: its normalizer (BertNormalizer) changes text" in told
    shown = call("show", out, "--text", "hello")
    assert (
        f"wordpiece, {size} pieces (tokenizers)" in shown
        and "unk=1 [UNK] bos=2 [CLS] eos=3 [SEP]" in shown
    )
    assert json.loads(call("show", tmp_path / "a.model", "--json"))["is_exact"] is False
    paths = (tmp_path / "a.model", out, tmp_path / "bert" / "tokenizer.json")
    rows = json.loads(call("compare", *paths, "--text", tmp_path / "text.txt", "--json"))
    assert [row["kind"] for row in rows] == ["bpe", "wordpiece", "wordpiece"]
    assert rows[0]["unknown"] == 0 < rows[1]["unknown"] == rows[2]["unknown"]
    assert rows[1]["came_back"] < rows[0]["came_back"] == 1
    table = call("compare", *paths, "--text", tmp_path / "text.txt").splitlines()
    assert table[0].split()[:3] == ["tokenizer", "kind", "pieces"] and len(table) == 4


def test_training_does_not_replace_an_imported_tokenizer(
    sentencepiece_model, tmp_path, monkeypatch
):
    (tmp_path / "raw.txt").write_text(ENGLISH[0], encoding="utf-8")
    inputs = {"inputs": [str(tmp_path / "raw.txt")]}
    folder = tmp_path / "corpus"
    corpus = CorpusConfig.model_validate({"folder": str(folder), "sources": {"s": inputs}})
    build_corpus(corpus, processes=1)
    (tmp_path / "a.model").write_bytes(sentencepiece_model)
    import_tokenizer(tmp_path / "a.model", tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    config = TokenizerConfig(folder=str(tmp_path / "theirs"), kind="bpe", vocab_size=400)
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"theirs")
    known = "holds tokenizer.model, which lmscale did not write"
    for model in (b"theirs", sentencepiece_model):  # not one, and one of another size
        (tmp_path / "theirs" / "tokenizer.model").write_bytes(model)
        for has_corpus in (False, True):
            with pytest.raises(DataError, match=known):
                find_trained(config, folder, ["s"], has_corpus=has_corpus)
        with monkeypatch.context() as patch, pytest.raises(DataError, match=known):
            patch.setattr("lmscale.tokenizer.train.train_model", None)  # it is known before
            train_tokenizer(config, folder, ["s"])
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"theirs")
    with pytest.raises(DataError, match="holds tokenizer.model, which lmscale did not write"):
        import_tokenizer(tmp_path / "a.model", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.model").read_bytes() == b"theirs"
    forced = train_tokenizer(config, folder, ["s"], force=True)
    (tmp_path / "theirs" / "meta.json").unlink()  # as one that was killed between the two
    assert train_tokenizer(config, folder, ["s"]).fingerprint == forced.fingerprint
    config = TokenizerConfig(folder=str(tmp_path / "out"), kind="byte_bpe", vocab_size=330)
    with pytest.raises(DataError, match=r"holds an imported tokenizer \(.*a.model\).*--force"):
        train_tokenizer(config, folder, ["s"])
    trained = train_tokenizer(config, folder, ["s"], force=True)
    assert load_tokenizer(tmp_path / "out").fingerprint == trained.fingerprint
    assert train_tokenizer(config, folder, ["s"]).fingerprint == trained.fingerprint
    assert trained.made_by["kind"] == trained.kind == "byte_bpe"
