"""A run's checkpoint → a file that llama.cpp runs, verified by llama.cpp, or nothing.

::

    fragments ──read──→ one parameter ──gguf_tensors.py──→ tensors, streamed (gguf_write.py)
    config    ──gguf_architectures.py, gguf_settings.py──→ settings
    tokenizer ──gguf_tokenizer.py────────────────────────→ tokens, merges, special ids
    the file, run by llama.cpp (llama_cpp.py): the same tokens, probabilities and ids ──→ rename
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.config.hf.llama_cpp import LlamaCpp, choose_llama_cpp
from lmscale.config.model import DecoderConfig
from lmscale.evaluation.found import FoundRun
from lmscale.exchange.chat import load_run_template
from lmscale.exchange.early import check_export
from lmscale.exchange.export import check_room
from lmscale.exchange.exported import (
    MARK_OF_FILE,
    Dtype,
    ExportRequest,
    Report,
    describe_found,
)
from lmscale.exchange.framing import find_beginning
from lmscale.exchange.gguf_settings import add_settings
from lmscale.exchange.gguf_tensors import (
    GgufTensor,
    plan_tensors,
    round_as_stored,
    slowed_frequencies,
)
from lmscale.exchange.gguf_tokenizer import Vocabulary, add_tokenizer, plan_vocabulary
from lmscale.exchange.gguf_write import check_gguf, write_gguf
from lmscale.exchange.llama_cpp import (
    LlamaCppCheck,
    check_installed,
    check_llama_cpp,
    tolerance_of,
)
from lmscale.exchange.parity import our_logits
from lmscale.exchange.plan_export import ExportPlan, check_found, open_export, plan_export
from lmscale.exchange.samples import draw_samples
from lmscale.exchange.tokenizer_check import hard_texts
from lmscale.exchange.verify import find_why_not
from lmscale.files.atomic import writing
from lmscale.files.output_folder import output_file
from lmscale.model.family import build_model_on
from lmscale.tokenizer.kept_template import load_kept_template

NUM_PROMPTS = 4
PROMPT_TOKENS, NEW_TOKENS = 256, 32


@dataclass(frozen=True, kw_only=True)
class GgufPlan:
    """A checkpoint as what it becomes."""

    found: FoundRun
    plan: ExportPlan
    there: LlamaCpp
    section: DecoderConfig
    tensors: tuple[GgufTensor, ...]
    vocabulary: Vocabulary
    begins_with_bos: bool

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class GgufExported:
    """What was written."""

    request: ExportRequest
    plan: GgufPlan
    bytes: int
    check: LlamaCppCheck | None
    why_not: str = ""
    """Why llama.cpp did not run it; empty: it did."""


def export_gguf(request: ExportRequest) -> GgufExported:
    """Write a run's checkpoint as one GGUF file.

    Peak memory is bounded by the largest parameter, until the verification, which holds the whole
    model in fp32. The file appears when all is verified. Raises ``ConfigError``,
    ``CheckpointError`` and ``DataError`` for what a user can mend.
    """
    check_export("gguf", request)
    plan = _plan(request.found, request.dtype, keeps_embeddings=request.keeps_embeddings)
    why_not = find_why_not(request, plan.plan)
    if not why_not:
        check_installed()  # before hours of writing
    check_room(request.out, plan.tensor_bytes, dtype=request.dtype)
    with writing("an export", request.out.parent), output_file(request.out) as path:
        _write(request, plan, path)
        check = None if why_not else _verify(request, plan, path)
        num_bytes = path.stat().st_size
    return GgufExported(request=request, plan=plan, bytes=num_bytes, check=check, why_not=why_not)


def _plan(found: FoundRun, dtype: Dtype, *, keeps_embeddings: bool) -> GgufPlan:
    plan = plan_export(found.config)
    there, section = choose_llama_cpp(plan.architecture.model_type, plan.section, plan.sizes)
    check_found(found)
    # None: there is no file of the tokenizer's own here that could say it, as in hf's export.
    beginning = find_beginning(found.folder, found.tokenizer)
    return GgufPlan(
        found=found,
        plan=plan,
        there=there,
        section=section,
        tensors=plan_tensors(plan.rules, there, section, dtype, keeps_embeddings=keeps_embeddings),
        vocabulary=plan_vocabulary(
            found.tokenizer, found.config.added_ids, num_rows=plan.sizes.vocab_size
        ),
        begins_with_bos=found.bos_id is not None if beginning is None else beginning,
    )


def _write(request: ExportRequest, plan: GgufPlan, path: Path) -> None:
    found = plan.found

    def describe(writer: Any) -> None:
        writer.add_name(found.config.run.name)
        writer.add_string(MARK_OF_FILE.decode(), found.manifest.hash)
        writer.add_string("lmscale.run", found.config.run.name)
        writer.add_uint32("lmscale.step", found.manifest.step)
        writer.add_string("lmscale.weights", found.weights)
        writer.add_string("lmscale.tokenizer", found.tokenizer.fingerprint)
        add_settings(writer, plan.there, plan.section, plan.plan.sizes)
        add_tokenizer(
            writer,
            plan.vocabulary,
            found.tokenizer.special_ids,
            begins_with_bos=plan.begins_with_bos,
        )
        if text := load_kept_template(found.folder):
            writer.add_chat_template(text)
        template = load_run_template(found)
        if template is not None and template.end_id != found.tokenizer.eos_id:
            writer.add_eot_token_id(template.end_id)

    with (
        _reading(plan) as read,
        request.bar("exporting", plan.tensor_bytes / 1e6, "MB") as advance,
    ):
        digests = write_gguf(
            path,
            plan.there.name,
            request.dtype,
            plan.tensors,
            read,
            describe,
            advance=lambda count: advance(count / 1e6),
        )
    check_gguf(path, plan.tensors, digests)


@contextmanager
def _reading(plan: GgufPlan) -> Iterator[Callable[[GgufTensor], Tensor]]:
    """Of a tensor, its whole parameter; of several in turn that are parts of one, read once."""
    with open_export(plan.found, plan.plan) as read:
        once = lru_cache(maxsize=1)(read)

        def read_of(tensor: GgufTensor) -> Tensor:
            return once(tensor.parameter) if tensor.parameter else slowed_frequencies(plan.section)

        yield read_of


def _verify(request: ExportRequest, plan: GgufPlan, path: Path) -> LlamaCppCheck:
    sizes, cpu = plan.plan.sizes, torch.device("cpu")
    model = build_model_on(plan.section, sizes, device=cpu, dtype=torch.float32).eval()
    with torch.no_grad(), _reading(plan) as read:
        for tensor in plan.tensors:
            if tensor.parameter:
                part = model.get_parameter(tensor.parameter)[tensor.rows]
                part.copy_(round_as_stored(tensor, read(tensor)))
    tokenizer = plan.found.tokenizer
    samples = draw_samples(plan.found.config, tokenizer.fingerprint)
    rows = samples.of_pieces(tokenizer.vocab_size)[:NUM_PROMPTS]
    new_tokens = min(NEW_TOKENS, sizes.max_positions // 2)
    most = min(PROMPT_TOKENS, sizes.max_positions - new_tokens)
    with request.bar("verifying", None, ""), torch.no_grad():
        return check_llama_cpp(
            path,
            logits=lambda ids: our_logits(model, ids, "tokens"),
            tokenizer=tokenizer,
            num_rows=sizes.vocab_size,
            prompts=[row[:most] for row in rows],
            texts=[*hard_texts(tokenizer), *map(tokenizer.decode, rows)],
            tolerance=tolerance_of(request.dtype, plan.section.activation),
            num_tokens=new_tokens,
        )


def report_gguf(exported: GgufExported) -> Report:
    """What the command prints."""
    found, check, request = exported.plan.found, exported.check, exported.request
    facts = {
        "format": "gguf",
        **describe_found(found),
        "tokenizer": found.tokenizer.fingerprint,
        "architecture": exported.plan.there.name,
        "dtype": request.dtype,
        "bytes": exported.bytes,
        "verified": check and asdict(check),
        "not_verified": exported.why_not,
    }
    tensors = f"{len(exported.plan.tensors)} tensors of {request.dtype}"
    rows = [
        ("exported", f"{found.name}, {found.weights} weights"),
        ("file", str(request.out)),
        (
            "as",
            f"{exported.plan.there.name}, {tensors}, {exported.bytes / 1e6:,.1f} MB",
        ),
    ]
    if check is None:
        why_not = f"All tensors read back; llama.cpp did not run the file: {exported.why_not}."
        rows.append(("verified", why_not))
    else:
        rows += [("verified", line) for line in check.describe()]
    rows.append(("try it", f"llama-completion -m {request.out} -p 'Once upon' -n 40"))
    return Report(facts, rows)
