"""config.json of a folder of transformers' → the section ``model``. No code of the folder runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lmscale.config.hf.architecture import Architecture, Head
from lmscale.config.hf.choose import ARCHITECTURES, read_section
from lmscale.config.model import ModelConfig
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.their_library import import_transformers
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json, quote

logger = logging.getLogger(__name__)
CONFIG_NAME = "config.json"
ADAPTER_NAME = "adapter_config.json"
Tree = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What a folder says of its model."""

    architecture: Architecture
    section: ModelConfig
    head: Head  # what the class ends in that it names
    tree: Tree  # as it stands in the file

    @property
    def version(self) -> str:
        """Of transformers, that wrote it."""
        return str(self.tree.get("transformers_version") or "")


def check_import(folder: Path, out: Path) -> SourceConfig:
    """The model in ``folder``. Raises ``ConfigError`` and ``DataError`` where there is none that
    lmscale knows, or something stands at ``out``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already. Name a new folder, or remove it.")
    return read_source_config(folder)


def read_source_config(folder: Path) -> SourceConfig:
    """The section of the model in ``folder``. Raises ``ConfigError`` and ``DataError``."""
    path = folder / CONFIG_NAME
    tree = _read_tree(folder, path)
    problems = []
    if tree.get("quantization_config"):
        method = tree["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        problems.append(
            f"{path}: its weights are quantized (quantization_config: {quote(method)}). Take the "
            "model that they were made of, or write them out as numbers first: "
            "AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(OTHER)"
        )
    if (kind := tree.get("model_type")) not in ARCHITECTURES:
        try:
            read_section(tree, str(path))
        except DataError as error:
            problems += error.problems
        if tree.get("auto_map"):
            problems.append(f"{path}: auto_map names code of its own, which lmscale never runs.")
    problems += [f"{path}: {odd}." for odd in _find_odd(tree)]
    if problems:
        raise DataError(problems)
    if tree.get("auto_map"):
        logger.warning(
            "%s names code of its own (auto_map), which is not run: the model is read as %s",
            *(path, kind),
        )
    full = _complete(tree, str(path))
    try:
        architecture, section = read_section(full, str(path))
    except ValidationError as error:
        lines = (f"{path}: the model that it describes: {each['msg']}." for each in error.errors())
        raise DataError(list(lines)) from None
    return SourceConfig(
        architecture=architecture, section=section, head=architecture.find_head(full), tree=tree
    )


def _read_tree(folder: Path, path: Path) -> Tree:
    if not folder.is_dir():
        is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder))
        how = f" A model of the hub is downloaded first: hf download {folder} --local-dir DIR"
        raise ConfigError(
            f"{folder}: there is no such folder. Name one that holds {CONFIG_NAME}."
            f"{how if is_name else ''}"
        )
    if (folder / ADAPTER_NAME).exists() and not path.exists():
        raise DataError(
            f"{folder} holds an adapter, which is the difference to another model. Merge it into "
            "that first: PeftModel.from_pretrained(BASE, DIR).merge_and_unload()"
            ".save_pretrained(OTHER)"
        )
    missing = (
        f"there is no {CONFIG_NAME} here. Name the folder of a model that transformers can load: "
        "with config.json, *.safetensors and the files of its tokenizer."
    )
    with reading(path, "Download it again.", missing=missing):
        tree = parse_json(read_plain(path))
        if not isinstance(tree, dict):
            raise ValueError("it is not an object")
    return tree


def _find_odd(tree: Tree) -> Iterator[str]:
    """What is of another type than transformers writes, and that it takes as it is."""
    names, labels = tree.get("architectures"), tree.get("id2label")
    are_names = isinstance(names, list) and all(isinstance(each, str) for each in names)
    if names is not None and not are_names:
        yield f"architectures = {quote(names)} is no list of names"
    if labels is not None and not isinstance(labels, dict):
        yield f"id2label = {quote(labels)} is no object"


def _complete(tree: Tree, where: str) -> Tree:
    """All settings, those left out as transformers has them, and old spellings as it reads them."""
    transformers = import_transformers()
    from huggingface_hub.errors import StrictDataclassError

    kind = transformers.CONFIG_MAPPING[str(tree["model_type"])]
    plain = {key: value for key, value in tree.items() if key != "auto_map"}
    try:
        return kind.from_dict(plain).to_dict()
    except (
        *(StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError),
        AttributeError,  # of a dtype that torch does not have
    ) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{where}: transformers cannot read it: {said or repr(error)}.") from None
