"""A tokenizer as the files of an export, and texts for it."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from lmscale.exchange.framing import Framing
from lmscale.exchange.tokenizer_files import write_tokenizer
from lmscale.tokenizer.base import Tokenizer

TEXTS = [topics[name] for name in sorted(topics)]
CHINESE = ["床前明月光，疑是地上霜。举头望明月，低头思故乡。", "学而时习之，不亦说乎？"]
PLAIN = Framing(roles={"eos_token": 2, "unk_token": 0, "pad_token": 3})


def write(tokenizer: Tokenizer, folder: Path, framing: Framing = PLAIN, **given: Any) -> None:
    given = {"added_ids": {}, "max_length": 64} | given
    write_tokenizer(tokenizer, folder, framing=framing, **given)


def tree_of(folder: Path) -> dict:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
