"""Arrays in numpy's format. Read back is only what lmscale writes: the header says no more than is
known already, so it is compared and never parsed.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lmscale.files.reading import open_plain

NPY_HEADER_BYTES = 128  # numpy pads it to a multiple of 64; all our arrays are short to describe


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes before the values of an array in C order, as numpy writes them."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    length = NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\0" + length.to_bytes(2, "little") + f"{text:{length - 1}}\n".encode()


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    content = buffer.getvalue()
    assert len(content) == NPY_HEADER_BYTES + array.nbytes, "numpy wrote a header of another size"
    return content


def map_columns(path: str | Path, dtype: np.dtype, num_rows: int, *, tail: int = 0) -> np.ndarray:
    """The array of so many rows in a file, memory-mapped; ``tail`` bytes follow it.

    Raises ``OSError``, and ``ValueError`` for a file that is not such an array.
    """
    with open_plain(path) as file:
        header = file.read(NPY_HEADER_BYTES)
        size = file.seek(0, 2) - NPY_HEADER_BYTES - tail
        columns, rest = divmod(size, num_rows * dtype.itemsize)
        if rest or columns < 0 or header != npy_header(dtype, (num_rows, columns)):
            raise ValueError(f"it is no array of {num_rows} rows of {dtype}")
        if not columns:  # which cannot be mapped
            return np.empty((num_rows, 0), dtype)
        return np.memmap(file, dtype, "r", offset=NPY_HEADER_BYTES, shape=(num_rows, columns))
