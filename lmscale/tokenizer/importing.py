"""Somebody else's tokenizer → a ``tokenizer.folder``: a .model, a tokenizer.json, or a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import writing
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json
from lmscale.files.tokenizer_files import HF_NAME, META_NAME, MODEL_NAME, find_meta
from lmscale.tokenizer.base import SPLITS, Tokenizer
from lmscale.tokenizer.codec import load_tokenizer, refuse_strangers, save_tokenizer
from lmscale.tokenizer.foreign import SentencePieceTokenizer
from lmscale.tokenizer.hf_rules import vocabulary_of
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer, build, parse_tree
from lmscale.tokenizer.kept_template import find_template, save_template
from lmscale.tokenizer.slow_files import read_slow
from lmscale.tokenizer.special_tokens import (
    choose_special_ids,
    find_candidates,
    need_eos,
    read_beside,
)

_WANTED = (
    "Give a SentencePiece model (.model), a tokenizer.json, or a folder of Hugging Face's with one"
)
_SENTENCEPIECE_NAMES = (MODEL_NAME, "spiece.model", "sentencepiece.bpe.model", "source.spm")
Chosen = Mapping[str, str | None]  # bos, eos, pad → the piece that the user names


def import_tokenizer(
    path: str | Path, folder: str | Path, *, chosen: Chosen | None = None, force: bool = False
) -> Tokenizer:
    """Read a tokenizer (``read_foreign``) and write it to a ``tokenizer.folder``.

    The same tokenizer there is kept as it is; another one is a ``DataError`` unless ``force``.
    """
    folder = Path(folder)
    tokenizer = read_foreign(path, chosen)
    with writing("the tokenizer", folder):
        if not force and _is_own(folder):
            old = load_tokenizer(folder)
            if old.fingerprint == tokenizer.fingerprint:
                return old
            raise DataError(
                f"{folder} holds another tokenizer ({old.fingerprint[:12]}). Shards and models "
                "made with it need it: name another folder, or replace it with --force."
            )
        if not force:
            refuse_strangers(tokenizer, folder)
        save_tokenizer(tokenizer, folder)
        if Path(path).is_dir():
            save_template(find_template(Path(path)), folder)
    return tokenizer


def read_foreign(
    path: str | Path, chosen: Chosen | None = None, *, needs_eos: bool = True
) -> Tokenizer:
    """The tokenizer of a file or folder, lmscale's own folders included.

    ``chosen``: pieces for bos, eos and pad in place of those that its files name. Without
    ``needs_eos`` it may lack an eos, which no run can do without. Raises ``DataError`` or
    ``ConfigError``.
    """
    path = Path(path)
    chosen = chosen or {}
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder. {_WANTED}.")
    folder = path if path.is_dir() else path.parent
    if _is_own(folder) and (path == folder or path.name in (MODEL_NAME, HF_NAME)):
        tokenizer = load_tokenizer(folder)
        _check_kept(tokenizer, folder, chosen)
        return tokenizer
    if path == folder:
        return _read_folder(folder, chosen, needs_eos=needs_eos)
    with reading(path, f"{_WANTED}."):
        content = read_plain(path)
    if path.suffix == ".json":
        return _read_json(content, path, folder, chosen, needs_eos=needs_eos)
    if path.suffix in (".yaml", ".yml", ".txt"):
        made = " That of a configuration is made by `lmscale tokenizer train`."
        more = "" if path.suffix == ".txt" else made
        raise DataError(f"{path}: a {path.suffix} file is no tokenizer. {_WANTED}.{more}")
    return _read_model(content, path, folder, chosen, needs_eos=needs_eos)


def _check_kept(tokenizer: Tokenizer, folder: Path, chosen: Chosen) -> None:
    """Raise ``ConfigError`` for other special pieces than lmscale's own folder has."""
    problems = []
    for role, piece in chosen.items():
        number = tokenizer.special_ids.get(role)
        old = "none" if number is None else tokenizer.piece(number)
        if piece and piece != old:
            problems.append(
                f"--{role} {piece}: {folder} is a tokenizer of lmscale's own, whose {role} is "
                f"{old} and stays so. Leave --{role} out, or import the files that it came from."
            )
    if problems:
        raise ConfigError(problems)


def _is_own(folder: Path) -> bool:
    """Whether lmscale wrote the tokenizer in a folder."""
    meta = find_meta(folder)
    if meta is None:
        return False
    with reading(meta, "Restore it."):
        content = read_plain(meta)
    if meta.name == META_NAME:
        try:
            tree = parse_json(content)
        except ValueError:  # damaged, which reading it says
            return True
        return isinstance(tree, dict) and {"made_by", "fingerprint"} <= set(tree)
    return b'"added_tokens"' not in content and b'"made_by"' in content


def _read_folder(folder: Path, chosen: Chosen, *, needs_eos: bool) -> Tokenizer:
    path = folder / HF_NAME
    if path.exists():
        with reading(path, f"{_WANTED}."):
            content = read_plain(path)
        return _read_json(content, path, folder, chosen, needs_eos=needs_eos)
    for name in _SENTENCEPIECE_NAMES:
        path = folder / name
        if path.exists():
            with reading(path, f"{_WANTED}."):
                content = read_plain(path)
            return _read_model(content, path, folder, chosen, needs_eos=needs_eos)
    tree = read_slow(folder)
    if tree is None:
        names = sorted(each.name for each in folder.iterdir())[:8]
        held = f"it holds {', '.join(names)}" if names else "it is empty"
        raise DataError(f"{folder}: there is no tokenizer in it; {held}. {_WANTED}.")
    return _read_json(_to_json(tree), folder, folder, chosen, needs_eos=needs_eos)


def _read_json(
    content: bytes, path: Path, folder: Path, chosen: Chosen, *, needs_eos: bool
) -> Tokenizer:
    source = _describe_source(path, content) | _read_splitting(folder)
    try:
        _refuse_pointer(content)
        tree = parse_tree(content)
        build(tree)  # the library judges it, before anything in it is believed
        if more := _missing_tokens(tree, folder):
            tree, content = _add_tokens(tree, more)
        vocabulary = vocabulary_of(tree)
        num_ids = max(vocabulary.values(), default=-1) + 1
        special_ids = choose_special_ids(
            chosen, folder=folder, tree=tree, find=vocabulary.get, num_ids=num_ids
        )
        if needs_eos:
            need_eos(special_ids, find_candidates(tree, vocabulary))
        return HuggingFaceTokenizer(content, source, special_ids)
    except DataError as error:
        raise DataError([f"{path}: {problem}" for problem in error.problems]) from None


def _read_model(
    content: bytes, path: Path, folder: Path, chosen: Chosen, *, needs_eos: bool
) -> Tokenizer:
    source = _describe_source(path, content) | _read_splitting(folder)
    try:
        _refuse_pointer(content)
        plain = SentencePieceTokenizer(content, source)
        if more := _missing_tokens({}, folder, plain.vocab_size):
            raise DataError(
                f"its folder adds {len(more)} tokens ({more[0]['content']}, …), which a "
                "SentencePiece model alone does not have. Write a tokenizer.json: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT)."
            )
        named = choose_special_ids(
            chosen, folder=folder, tree={}, find=plain.find_piece, num_ids=plain.vocab_size
        )
        special_ids = {**plain.special_ids, **named}
        if needs_eos:
            need_eos(special_ids, plain.control_pieces)
        return SentencePieceTokenizer(content, source, special_ids)
    except DataError as error:
        raise DataError([f"{path}: {problem}" for problem in error.problems]) from None


def _describe_source(path: Path, content: bytes) -> dict[str, Any]:
    """What ``meta.json`` keeps of where it came from: a name, and no place of this machine."""
    name = path.name if path.is_dir() else f"{path.resolve().parent.name}/{path.name}"
    return {"imported_from": name, "sha256": hashlib.sha256(content).hexdigest()}


def _read_splitting(folder: Path) -> dict[str, bool]:
    """Whether special tokens in a text are text, where the settings beside it say so."""
    settings = read_beside(folder, ("tokenizer_config.json",)).get("tokenizer_config.json", {})
    return {SPLITS: True} if settings.get(SPLITS) is True else {}


def _refuse_pointer(content: bytes) -> None:
    if content.startswith(b"version https://git-lfs"):
        raise DataError("a pointer of Git LFS, not the file itself. Fetch it: git lfs pull.")
    first = content[:256].split(b"\n")[0].split(b" ")
    if len(first) == 2 and first[1].isdigit() and b"\n" in content[:256]:
        raise DataError(
            "a vocabulary of tiktoken, which does not say how text is cut. Give the tokenizer.json "
            "that comes with it."
        )


def _missing_tokens(
    tree: Mapping[str, Any], folder: Path, vocab_size: int | None = None
) -> list[dict[str, Any]]:
    """Tokens that tokenizer_config.json adds and the tokenizer itself does not have, by id."""
    config = read_beside(folder, ("tokenizer_config.json",)).get("tokenizer_config.json", {})
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        count = config.get("extra_ids")  # T5's class makes the sentinels itself
        if vocab_size is None or not isinstance(count, int):
            return []
        return [{"content": f"<extra_id_{number}>"} for number in range(min(count, 10_000))]
    added = [
        {**token, "id": int(number)}
        for number, token in listed.items()
        if number.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
    ]
    if vocab_size is not None:
        return [token for token in added if token["id"] >= vocab_size]
    known = {token.get("id") for token in tree.get("added_tokens") or ()}
    missing = [token for token in added if token["id"] not in known]
    return sorted(missing, key=lambda token: token["id"])


def _add_tokens(tree: dict[str, Any], more: list[dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    added = [*(tree.get("added_tokens") or ()), *({**flags, "special": False, **t} for t in more)]
    tree = {**tree, "added_tokens": sorted(added, key=lambda token: token["id"])}
    whole = build(tree)
    if wrong := [t for t in more if whole.token_to_id(t["content"]) != t["id"]]:
        raise DataError(
            f"tokenizer_config.json adds {wrong[0]['content']!r} as id {wrong[0]['id']}, which "
            "does not follow the ids of the tokenizer. Write both again: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT)."
        )
    return tree, _to_json(tree)


def _to_json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode()
