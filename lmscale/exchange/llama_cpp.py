# Shape letters: T time, V vocabulary.
"""Whether llama.cpp computes of a GGUF file what the model does, and cuts text as the tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscale.errors import ConfigError, DataError
from lmscale.exchange.exported import Dtype
from lmscale.files.extras import install_extra
from lmscale.tokenizer.base import OWN, SPACE_MARK, Tokenizer

TOP = 20  # log-probabilities compared at each place
TOLERANCES: dict[Dtype, float] = {
    **{"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.1},
    **{"q8_0": 0.4, "q4_0": 0.4},  # both have activations of 8 bits
}
"""Of log-probabilities, in standard deviations of the logits at a place. llama.cpp rounds the
activations to the dtype of the weights; of small models 2e-5, 0.004, 0.03 and 0.14 were measured,
and deeper ones add up more.
"""
GELU_TOLERANCE = 1e-2
"""Where there is a gelu, which llama.cpp looks up in a table of f16: 0.001 was measured."""


@dataclass(frozen=True, kw_only=True)
class LlamaCppCheck:
    """What a comparison gave."""

    largest_error: float
    """As ``TOLERANCES`` has it."""
    tolerance: float
    prompts: int
    tokens: int
    """Greedy ones, all as the model's own."""
    texts: int
    """With the tokenizer's ids, all."""
    other_texts: int
    """Not asked about, as a real U+2581 is in them."""
    version: str
    """Of the package that brought llama.cpp."""

    def describe(self) -> Iterator[str]:
        """Sentences for people."""
        yield (
            f"llama.cpp (xllamacpp {self.version}) went on from {self.prompts} samples with the "
            f"model's own {self.tokens} tokens; log-probabilities differ by at most "
            f"{self.largest_error:.1e} standard deviations of the logits, where "
            f"{self.tolerance:.0e} is allowed."
        )
        yield f"It gives the tokenizer's ids to {self.texts} of {self.texts} texts."
        if self.other_texts:
            yield "A real U+2581 in a text is a space to llama.cpp, unlike to lmscale."


def tolerance_of(dtype: Dtype, activation: str) -> float:
    """How far llama.cpp may be off."""
    return max(TOLERANCES[dtype], GELU_TOLERANCE if activation in ("gelu", "geglu") else 0)


def check_llama_cpp(
    path: Path,
    *,
    logits: Callable[[Sequence[int]], Tensor],
    tokenizer: Tokenizer,
    num_rows: int,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[str],
    tolerance: float,
    num_tokens: int = 32,
) -> LlamaCppCheck:
    """Continue the prompts under llama.cpp, and compare at each place.

    ``logits`` gives the model's own of a row of ids, f32 [T, V = ``num_rows``], of the weights as
    the file has them. Raises ``DataError`` with what differs, and ``ConfigError`` where llama.cpp
    is missing.
    """
    exact = [text for text in texts if tokenizer_agrees(text, tokenizer)]
    never = [*find_unprintable(tokenizer), *range(tokenizer.vocab_size, num_rows)]
    question = {
        "path": str(path),
        "prompts": [list(map(int, prompt)) for prompt in prompts],
        "texts": exact,
        "count": num_tokens,
        "top": TOP,
        "never": never,
        "context": max(map(len, prompts)) + num_tokens + 1,
        "threads": torch.get_num_threads(),
    }
    reply = ask_llama_cpp(question)
    errors = []
    for prompt, continued in zip(question["prompts"], reply["continued"], strict=True):
        logits_TV = logits([*prompt, *continued["tokens"]])[len(prompt) - 1 :]
        errors.append(compare_places(logits_TV, continued, never, num_tokens, tolerance))
    for text, ids in zip(exact, reply["texts"], strict=True):
        if ids != tokenizer.encode(text).tolist():
            raise DataError(f"llama.cpp gives other ids than the tokenizer to {text[:80]!r}.")
    return LlamaCppCheck(
        largest_error=max(errors),
        tolerance=tolerance,
        prompts=len(prompts),
        tokens=len(prompts) * num_tokens,
        texts=len(exact),
        other_texts=len(texts) - len(exact),
        version=version("xllamacpp"),
    )


def tokenizer_agrees(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the text should have the same ids. A real U+2581 is a space to llama.cpp, as to
    SentencePiece, but not to lmscale's own tokenizers.
    """
    return SPACE_MARK not in text or tokenizer.format != OWN


def find_unprintable(tokenizer: Tokenizer) -> list[int]:
    """Special ids and those of half a character, of which llama.cpp tells no probability."""
    special = {*tokenizer.special_ids.values()}
    return [
        number
        for number in range(tokenizer.vocab_size)
        if number in special or not _is_whole(tokenizer.decode_bytes([number]))
    ]


def _is_whole(content: bytes) -> bool:
    try:
        return bool(content.decode())
    except UnicodeDecodeError:
        return False


def compare_places(
    logits_TV: Tensor,
    continued: dict[str, Any],
    never: Sequence[int],
    num_tokens: int,
    tolerance: float,
) -> float:
    """The largest error in all places. Raises ``DataError`` above ``tolerance``."""
    tokens, likeliest = continued["tokens"], continued["likeliest"]
    if len(tokens) != num_tokens or len(likeliest) != num_tokens:
        raise DataError(
            f"llama.cpp gave {len(tokens)} tokens and {len(likeliest)} probabilities where "
            f"{num_tokens} were asked for."
        )
    largest = 0.0
    for place, (token, top) in enumerate(zip(tokens, likeliest, strict=True)):
        logits_V = logits_TV[place].double()
        spread = logits_V.std().item()
        ids, theirs = np.array([each[0] for each in top]), np.array([each[1] for each in top])
        ours = logits_V.log_softmax(-1)[torch.from_numpy(ids)].numpy()
        error = float(np.abs(ours - theirs).max()) / spread
        allowed = logits_V.clone()
        allowed[list(never)] = -torch.inf
        behind = (allowed.max() - allowed[token]).item() / spread  # 0, but of a tie
        if not max(error, behind) <= tolerance:
            raise DataError(
                f"llama.cpp computes something else of the file: at token {place + 1} of a "
                f"continuation its log-probabilities are {error:.1e} standard deviations of the "
                f"logits off, and its likeliest token {behind:.1e} behind the model's; "
                f"{tolerance:.0e} was allowed."
            )
        largest = max(largest, error)
    return largest


def check_installed() -> None:
    """Raises ``ConfigError`` where llama.cpp is missing."""
    if find_spec("xllamacpp") is None:
        raise ConfigError(
            f"Verifying a GGUF file needs llama.cpp: {install_extra('gguf')} in "
            "the clone. Or export without it: --verify tensors"
        )


def time_gguf(
    files: Sequence[Path], prompt: Sequence[int], *, count: int, rounds: int
) -> list[tuple[float, float]]:
    """Tokens a second of each file: reading ``prompt``, and writing ``count`` behind it. The files
    take turns; the medians. Raises ``ConfigError`` where llama.cpp is missing.
    """
    question = {
        "files": list(map(str, files)),
        "prompt": list(map(int, prompt)),
        "count": count,
        "rounds": rounds,
        "context": len(prompt) + count + 1,
        "threads": torch.get_num_threads(),
    }
    of_files = np.array(ask_llama_cpp(question)["rates"])  # [files, rounds, 2]
    return [(float(read), float(write)) for read, write in np.median(of_files, axis=1)]


def ask_llama_cpp(question: dict[str, Any]) -> dict[str, Any]:
    """What ``llama_cpp_child.answer`` gives, of a process that does not outlive this one."""
    check_installed()
    process = subprocess.run(
        [sys.executable, "-m", "lmscale.exchange.llama_cpp_child", str(os.getpid())],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if process.returncode:
        said = "\n".join(process.stderr.splitlines()[-20:])
        raise DataError(
            "llama.cpp could not run the file: its process ended with "
            f"{process.returncode} after saying\n{said}"
        )
    return json.loads(process.stdout.splitlines()[-1])
