"""A run's tokenizer as llama.cpp's own: exactly, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmscale.errors import DataError
from lmscale.exchange.sentencepiece_json import parse_sentencepiece
from lmscale.exchange.tokenizer_files import name_ids
from lmscale.tokenizer.base import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of pieces, as in SentencePiece
_BPE = 2  # of SentencePiece's trainer_spec.model_type
_INSTEAD = "Export it with --format hf."
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SPLITS = {
    ((_GPT2,), False): "gpt-2",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",  # byte_bpe's, with tokenizer.split_digits
    (("digits", _GPT2), False): "starcoder",
    (_DEEPSEEK3, False): "deepseek-v3",
}
"""How text is cut before merging, and whether a whole word that is a token needs no merges →
llama.cpp's name for it. dbrx is Llama 3's cut without that.
"""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer, every list in the order of ids."""

    model: str
    """``llama``: SentencePiece's BPE; ``gpt2``: byte-level BPE."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = "default"
    has_space_prefix: bool = False
    """Whether a text begins with a space that nobody wrote."""


def plan_vocabulary(
    tokenizer: Tokenizer, added_ids: Mapping[str, int], *, num_rows: int
) -> Vocabulary:
    """The tokenizer's pieces, the objective's own ids and, up to ``num_rows``, what no text has.

    Raises ``DataError`` for a tokenizer that llama.cpp has no exact equal of.
    """
    is_json = tokenizer.format == "tokenizers"
    vocabulary = (_read_json if is_json else _read_sentencepiece)(tokenizer.model)
    tokens, types = [*vocabulary.tokens], [*vocabulary.types]
    names = name_ids(range(len(tokens), num_rows), added_ids, taken=tokens)
    for number, name in names.items():
        tokens.append(name)
        types.append(_CONTROL if number in added_ids.values() else _UNUSED)
    scores = vocabulary.scores and (*vocabulary.scores, *(0.0,) * num_rows)[:num_rows]
    more = {"tokens": tuple(tokens), "types": tuple(types), "scores": scores}
    return Vocabulary(**{**vars(vocabulary), **more})


def add_tokenizer(
    writer: Any, vocabulary: Vocabulary, special_ids: Mapping[str, int], *, begins_with_bos: bool
) -> None:
    """Give a ``gguf.GGUFWriter`` the tokenizer; ``special_ids`` by unk, bos, eos and pad."""
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.has_space_prefix)
    # Without a number of its own, llama.cpp would take 1 or 11 for bos, whatever piece that is.
    ids = {"bos": special_ids["eos"], **special_ids}
    writer.add_bos_token_id(ids["bos"])
    writer.add_eos_token_id(ids["eos"])
    for name in ("unk", "pad"):
        if name in ids:
            getattr(writer, f"add_{name}_token_id")(ids[name])
    writer.add_add_bos_token(begins_with_bos)
    writer.add_add_eos_token(False)


def _read_sentencepiece(model: bytes) -> Vocabulary:
    proto = parse_sentencepiece(model)
    spec = proto.normalizer_spec
    odd = [
        text
        for is_so, text in (
            (
                proto.trainer_spec.model_type != _BPE,
                "it is not BPE",
            ),
            (bool(spec.precompiled_charsmap), f"its normalizer is {spec.name}"),
            (spec.remove_extra_whitespaces, "it drops white space"),
            (not spec.escape_whitespaces, "its pieces hold plain spaces"),
            (proto.trainer_spec.treat_whitespace_as_suffix, "its spaces end words"),
            (not any(p.piece == "<0x0A>" for p in proto.pieces), "it has no byte pieces"),
        )
        if is_so
    ]
    if odd:
        raise _refused(odd)
    return Vocabulary(
        model="llama",
        tokens=tuple(piece.piece for piece in proto.pieces),
        types=tuple(piece.type for piece in proto.pieces),
        scores=tuple(piece.score for piece in proto.pieces),
        has_space_prefix=spec.add_dummy_prefix,
    )


def _read_json(model: bytes) -> Vocabulary:
    tree = json.loads(model)
    bpe = tree["model"]
    cuts = _describe_cuts(tree.get("pre_tokenizer"))
    pre = _SPLITS.get((cuts, bool(bpe.get("ignore_merges"))))
    odd = []
    if bpe.get("type") != "BPE" or pre is None:
        odd.append(
            "it is not byte-level BPE with a way to cut text that llama.cpp has, as tokenizer.kind "
            "= byte_bpe has with split_digits"
        )
    normalizer = tree.get("normalizer")
    if normalizer and normalizer.get("normalizers") != []:
        odd.append(f"its normalizer is {normalizer['type']}")
    if any(token["lstrip"] or token["rstrip"] for token in tree["added_tokens"]):
        odd.append("some of its added tokens take the spaces beside them")
    if odd or pre is None:
        raise _refused(odd)
    tokens = {number: piece for piece, number in bpe["vocab"].items()}
    types = dict.fromkeys(tokens, _NORMAL)
    for token in tree["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    order = range(max(tokens) + 1)
    return Vocabulary(
        model="gpt2",
        tokens=tuple(tokens.get(number, f"<|unused_{number}|>") for number in order),
        types=tuple(types.get(number, _UNUSED) for number in order),
        merges=tuple(
            merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]
        ),
        pre=pre,
    )


def _describe_cuts(tree: Any) -> tuple[str, ...]:
    """The patterns by which text is cut, one after the other; ``?`` for what is none."""
    steps = tree.get("pretokenizers", [tree]) if tree else []
    cuts = [cut for step in steps for cut in _describe_step(step)]
    return tuple(cuts)


def _describe_step(step: Mapping[str, Any]) -> Iterator[str]:
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from [_GPT2] if step.get("use_regex", True) else []
    elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        # A control character may stand in a pattern as it is, or by its escape.
        yield step["pattern"].get("Regex", "?").replace("\r", r"\r").replace("\n", r"\n")
    elif kind == "Digits" and step["individual_digits"]:
        yield "digits"
    else:
        yield "?"


def _refused(odd: list[str]) -> DataError:
    return DataError(
        f"llama.cpp has no tokenizer that gives the ids of this one: {'; '.join(odd)}. {_INSTEAD}"
    )
