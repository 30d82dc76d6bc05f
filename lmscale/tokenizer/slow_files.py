"""Vocabularies as they were kept before there was ``tokenizer.json``: GPT-2's and BERT's.

vocab.json + merges.txt (encoder.json + vocab.bpe)   byte-level BPE
vocab.txt                                            WordPiece
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmscale.errors import DataError
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json
from lmscale.tokenizer.hf_rules import byte_letters
from lmscale.tokenizer.special_tokens import read_beside

GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
BERT_FILE = "vocab.txt"
_LIKE_GPT2 = ("", "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer")
_LIKE_BERT = ("", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
_BERT_PIECES = ("[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]")
_ADVICE = (
    "Write a tokenizer.json with the library that made it: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT)."
)


def read_slow(folder: Path) -> dict[str, Any] | None:
    """The tree of a ``tokenizer.json`` that gives what the folder's files gave; None: it has none.
    Raises ``DataError`` for files of another kind.
    """
    config = read_beside(folder, ("tokenizer_config.json",)).get("tokenizer_config.json", {})
    made_for = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    for names in GPT2_FILES:
        if all((folder / name).exists() for name in names):
            _check_class(folder, made_for, _LIKE_GPT2)
            return _read_gpt2(folder / names[0], folder / names[1], config)
    if (folder / BERT_FILE).exists():
        _check_class(folder, made_for, _LIKE_BERT)
        return _read_bert(folder / BERT_FILE, config)
    return None


def _check_class(folder: Path, made_for: str, known: tuple[str, ...]) -> None:
    if made_for not in known:
        raise DataError(
            f"{folder} has only the files of a slow tokenizer, of the class {made_for}, which do "
            f"not say its rules. {_ADVICE}"
        )


def _read_gpt2(vocabulary: Path, merges: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    with reading(vocabulary, _ADVICE):
        ids = parse_json(read_plain(vocabulary))
        if not isinstance(ids, dict) or not set(byte_letters()) <= set(ids):
            raise ValueError("it is no vocabulary of byte-level BPE")
    with reading(merges, _ADVICE):
        lines = read_plain(merges).decode("utf-8").replace("\r\n", "\n").split("\n")
        rules = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        if any(len(rule) != 2 for rule in rules):
            raise ValueError("a line of it is no pair of pieces")
    byte_level: dict[str, Any] = {"type": "ByteLevel", "trim_offsets": True}
    byte_level["add_prefix_space"] = bool(config.get("add_prefix_space", False))
    return _tree(
        model={"type": "BPE", "vocab": ids, "merges": rules},
        special=[piece for piece in ("<|endoftext|>", "<s>", "</s>", "<pad>") if piece in ids],
        ids=ids,
        normalizer=None,
        pre_tokenizer={**byte_level, "use_regex": True},
        decoder={**byte_level, "use_regex": True},
    )


def _read_bert(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    with reading(path, _ADVICE):
        pieces = [line.rstrip("\r\n") for line in read_plain(path).decode("utf-8").split("\n")]
        while pieces and not pieces[-1]:
            pieces.pop()
        ids = {piece: number for number, piece in enumerate(pieces)}
        if "[UNK]" not in ids:
            raise ValueError("it is no vocabulary of BERT's")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        "strip_accents": config.get("strip_accents"),
        "lowercase": bool(config.get("do_lower_case", True)),  # as BertTokenizer has it
    }
    return _tree(
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
        special=[piece for piece in _BERT_PIECES if piece in ids],
        ids=ids,
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _tree(
    *, model: dict[str, Any], special: list[str], ids: Mapping[str, int], **parts: Any
) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": ids[piece], "content": piece, **flags, "special": True}
        for piece in sorted(special, key=ids.__getitem__)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        **parts,
        "post_processor": None,
        "model": model,
    }
