# Shape letters: N rows of a head, R half of them.
"""A model's parameters as the tensors of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscale.config.hf.llama_cpp import LlamaCpp
from lmscale.config.model import DecoderConfig
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.exported import Dtype
from lmscale.exchange.rules import Rule
from lmscale.model.rotary import plan_frequencies

TYPES: Mapping[Dtype, str] = {
    **{"fp32": "F32", "fp16": "F16", "bf16": "BF16"},
    **{"q8_0": "Q8_0", "q4_0": "Q4_0"},
}
"""Ours → what GGUF calls it. q8_0, q4_0: 32 weights of a row are whole numbers of 8 or 4 bits times
one of fp16."""
PIECE_ELEMENTS = 2**24  # converted at once
BLOCK = 32  # weights that share a factor
BLOCK_BYTES: Mapping[Dtype, int] = {"q8_0": 2 + 32, "q4_0": 2 + 16}  # of them, with it
_EMBEDDINGS = ("token_embd", "output.")  # names of the embedding and of the head


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor there. Its values are the parameter's rows from ``first_row`` on."""

    name: str
    shape: tuple[int, ...]
    """[rows, …], as in torch; the file has it the other way round."""
    dtype: Dtype
    parameter: str
    """Ours; empty of one that only settings make."""
    first_row: int = 0
    heads: int = 0
    """Of queries or keys, whose halves are to be interleaved; 0: the rows stay as they are."""

    @property
    def rows(self) -> slice:
        """Of the parameter."""
        return slice(self.first_row, self.first_row + self.shape[0])

    @property
    def num_bytes(self) -> int:
        count = int(np.prod(self.shape))
        if self.dtype in BLOCK_BYTES:
            return count // BLOCK * BLOCK_BYTES[self.dtype]
        return count * (4 if self.dtype == "fp32" else 2)


def plan_tensors(
    rules: Sequence[Rule],
    there: LlamaCpp,
    section: DecoderConfig,
    dtype: Dtype,
    *,
    keeps_embeddings: bool = False,
) -> tuple[GgufTensor, ...]:
    """The tensors in the order of the file.

    Matrices have the dtype; vectors and position embeddings are fp32, as llama.cpp wants them, and
    matrices whose rows are no multiple of 32 are fp16 instead of q8_0 or q4_0, and with
    ``keeps_embeddings`` the embedding and the head are. Raises ``ConfigError`` for a
    tensor that the architecture there has no place for.
    """
    import gguf

    arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[there.name]
    names = gguf.get_tensor_name_map(arch, section.layers)
    tensors, unknown = [], []
    for rule in rules:
        first_row = 0
        for theirs, rows in zip(rule.theirs, rule.rows, strict=True):
            name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if name is None:
                unknown.append(theirs)
                continue
            shape = (rows, *rule.shape[1:])
            tensors.append(
                GgufTensor(
                    name=name,
                    shape=shape,
                    dtype=_choose_dtype(name, shape, dtype, keeps_embeddings=keeps_embeddings),
                    parameter=rule.name,
                    first_row=first_row,
                    heads=_rotated_heads(name, there, section),
                )
            )
            first_row += rows
    if unknown:
        raise ConfigError(f"llama.cpp's {there.name} has no place for {', '.join(unknown)}.")
    if section.rope_scaling.kind == "llama3":
        half = section.resolved_head_width // 2
        tensors.append(
            GgufTensor(name="rope_freqs.weight", shape=(half,), dtype="fp32", parameter="")
        )
    return tuple(tensors)


def _choose_dtype(
    name: str, shape: tuple[int, ...], dtype: Dtype, *, keeps_embeddings: bool
) -> Dtype:
    if len(shape) == 1 or name.startswith("position_embd"):
        return "fp32"
    is_kept = keeps_embeddings and name.startswith(_EMBEDDINGS)
    return "fp16" if dtype in BLOCK_BYTES and (is_kept or shape[-1] % BLOCK) else dtype


def _rotated_heads(name: str, there: LlamaCpp, section: DecoderConfig) -> int:
    heads = {"attn_q": section.heads, "attn_k": section.resolved_kv_heads}
    part = name.split(".")[-2]  # blk.0.attn_q.weight
    return heads.get(part, 0) if there.is_interleaved else 0


def slowed_frequencies(section: DecoderConfig) -> Tensor:
    """By how much llama3's scaling divides each frequency, f32 [R]."""
    width, theta = section.resolved_head_width, section.rope_theta
    plain_R = plan_frequencies(width, theta, type(section.rope_scaling)())
    return plain_R / plan_frequencies(width, theta, section.rope_scaling)


def convert(tensor: GgufTensor, value: Tensor) -> Iterator[np.ndarray]:
    """The tensor's bytes in pieces of whole rows, of the parameter, f32 in our shape.

    Raises ``DataError`` where fp16 has no number for a weight.
    """
    part = value[tensor.rows]
    if tensor.heads:
        part = interleave(part, tensor.heads)
    for piece in part.split(_rows_at_once(part)):
        yield _encode(tensor, piece.contiguous())


def _rows_at_once(part: Tensor) -> int:
    return max(1, PIECE_ELEMENTS // max(1, part[0].numel()))


def round_as_stored(tensor: GgufTensor, value: Tensor) -> Tensor:
    """What the tensor's rows of the parameter, f32, are worth in the file; in our order."""
    part = value[tensor.rows]
    if tensor.dtype == "fp32":
        return part.float()
    if tensor.dtype not in BLOCK_BYTES:
        return part.to(torch.float16 if tensor.dtype == "fp16" else torch.bfloat16).float()
    pieces = part.split(_rows_at_once(part))
    return torch.cat([_round_blocks(piece, tensor.dtype) for piece in pieces])


def _round_blocks(piece: Tensor, dtype: Dtype) -> Tensor:
    import gguf

    stored = _quantize(piece.float().contiguous().numpy(), dtype)
    return torch.from_numpy(gguf.quants.dequantize(stored, quantization_types()[dtype]))


def interleave(part: Tensor, heads: int) -> Tensor:
    """Rows [heads · 2 · R, …] of two halves a head, as pairs: row r + R follows row r."""
    halves = part.reshape(heads, 2, part.shape[0] // heads // 2, *part.shape[1:])
    return halves.transpose(1, 2).reshape(part.shape)


def separate(part: Tensor, heads: int) -> Tensor:
    """What ``interleave`` has made its result of."""
    pairs = part.reshape(heads, part.shape[0] // heads // 2, 2, *part.shape[1:])
    return pairs.transpose(1, 2).reshape(part.shape)


def _encode(tensor: GgufTensor, piece: Tensor) -> np.ndarray:
    if tensor.dtype == "fp32":
        return piece.float().numpy()
    if tensor.dtype == "bf16":
        return piece.bfloat16().view(torch.int16).numpy()
    if tensor.dtype == "fp16":
        half = piece.half()
        if not half.isfinite().all():
            largest = piece.abs().max().item()
            raise DataError(
                f"{tensor.parameter} has a weight of {largest:.3g}, more than fp16 can "
                "hold (65,504). Export it in another dtype: --dtype bf16 or fp32"
            )
        return half.numpy()
    return _quantize(piece.float().numpy(), tensor.dtype)


def _quantize(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    import gguf

    return gguf.quants.quantize(values, quantization_types()[dtype])


def quantization_types() -> dict[Dtype, Any]:
    """Ours → the package's."""
    import gguf

    return {dtype: gguf.GGMLQuantizationType[name] for dtype, name in TYPES.items()}
