"""A GGUF file, written tensor by tensor, and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from torch import Tensor

from lmscale.errors import DataError
from lmscale.exchange.exported import Dtype
from lmscale.exchange.gguf_tensors import (
    BLOCK_BYTES,
    TYPES,
    GgufTensor,
    convert,
    quantization_types,
)


def write_gguf(
    path: Path,
    name: str,
    dtype: Dtype,
    tensors: Sequence[GgufTensor],
    read: Callable[[GgufTensor], Tensor],
    describe: Callable[[Any], None],
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> dict[str, str]:
    """Write the architecture ``name``; what is in the file, as ``check_gguf`` wants it.

    ``read`` gives the parameter of a tensor, f32, and holds one at a time; ``describe`` gives the
    settings to a ``gguf.GGUFWriter``. Raises ``OSError`` of a full disk.
    """
    import gguf

    types = quantization_types()
    writer = gguf.GGUFWriter(str(path), name)
    share = "ALL" if dtype == "fp32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{share}_{TYPES[dtype]}"])
    if dtype in BLOCK_BYTES:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe(writer)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            "float32",  # pyright: ignore[reportArgumentType]  # raw_dtype is what counts
            tensor.num_bytes,
            raw_dtype=types[tensor.dtype],
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file: BinaryIO = writer.fout[0]  # pyright: ignore
        # Not by the writer: numpy's tofile hides why a disk refused.
        digests = {}
        for tensor in tensors:
            _pad(file, gguf.GGUF_DEFAULT_ALIGNMENT)
            digests[tensor.name] = _write(file, tensor, read(tensor), advance)
        _pad(file, gguf.GGUF_DEFAULT_ALIGNMENT)
    finally:
        writer.close()
    return digests


def _write(
    file: BinaryIO, tensor: GgufTensor, value: Tensor, advance: Callable[[int], None]
) -> str:
    digest = xxhash.xxh3_128()
    for piece in convert(tensor, value):
        content = piece.reshape(-1).view("u1").data
        file.write(content)
        digest.update(content)
        advance(len(content))
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return xxhash.xxh3_128(content.reshape(-1).view("u1").data).hexdigest()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def check_gguf(path: Path, tensors: Sequence[GgufTensor], digests: Mapping[str, str]) -> None:
    """Read the file by the ``gguf`` package: every tensor's shape, type and bits are what was
    meant. Raises ``DataError``.
    """
    import gguf

    types = quantization_types()
    found = {each.name: each for each in gguf.GGUFReader(str(path)).tensors}
    problems = []
    for tensor in tensors:
        there = found.pop(tensor.name, None)
        if there is None:
            problems.append(f"{tensor.name} is missing")
            continue
        shape = tuple(int(size) for size in reversed(there.shape))
        if (shape, there.tensor_type) != (tensor.shape, types[tensor.dtype]):
            problems.append(f"{tensor.name} is {there.tensor_type.name} {list(shape)}")
        elif _digest(there.data) != digests[tensor.name]:
            problems.append(f"{tensor.name} has other bits than were written")
    problems += [f"{name} should not be there" for name in found]
    if problems:
        raise DataError(f"{path} was not written as it should be: {'; '.join(problems[:5])}.")
