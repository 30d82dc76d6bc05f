"""The safetensors files of a folder of transformers': what is in them, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.errors import DataError
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import describe_unsafe_name, parse_json, quote

WHOLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Of safetensors' names, those of weights that are numbers; and what torch calls them."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_AGAIN = "Download it again."


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    file: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """What a folder's files hold, as their headers say."""

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def dtype(self) -> str:
        """That most of its tensors have, as torch calls it."""
        counts = Counter(each.dtype for each in self.tensors.values() if each.dtype in FLOATS)
        return FLOATS[counts.most_common(1)[0][0]] if counts else ""

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """A function from a tensor's name to it, on the CPU in its own dtype, read when asked."""
        with ExitStack() as stack:
            handles: dict[Path, Any] = {}

            def read(name: str) -> Tensor:
                file = self.tensors[name].file
                if file not in handles:
                    handles[file] = stack.enter_context(_open(file))
                return handles[file].get_tensor(name)

            yield read


def find_source_weights(folder: Path) -> SourceWeights:
    """The safetensors files of ``folder``, and their headers. Raises ``DataError``."""
    whole, index = folder / WHOLE_NAME, folder / INDEX_NAME
    if whole.exists():
        files, named = [whole], None
    elif index.exists():
        named = _read_index(index)
        files = [folder / name for name in sorted({*named.values()})]
    else:
        raise DataError(_describe_none(folder))
    problems, tensors = [], {}
    for file in files:
        if not file.exists():
            problems.append(f"{file} is missing, which {INDEX_NAME} names. {_AGAIN}")
            continue
        try:
            with _open(file) as handle:
                for name in handle.keys():
                    part = handle.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    tensors[name] = StoredTensor(file=file, dtype=dtype, shape=shape)
        except DataError as error:
            problems += error.problems
    if not problems and named is not None:
        lacking = [name for name in named if name not in tensors]
        problems += [
            f"{folder / named[name]} has no tensor {name}, which {INDEX_NAME} says. {_AGAIN}"
            for name in lacking[:MAX_NAMED]
        ]
    if problems:
        raise DataError(problems)
    return SourceWeights(folder=folder, files=tuple(files), tensors=tensors)


def _open(file: Path) -> Any:
    """The handle of a file, to be closed. Raises ``DataError`` for one that is damaged."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except SafetensorError as error:
        raise DataError(
            f"{file} is cut short, or is no safetensors file ({error}; it has "
            f"{file.stat().st_size:,} bytes). {_AGAIN}"
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.") from None


def _read_index(path: Path) -> dict[str, str]:
    """Tensor's name → file's name."""
    with reading(path, _AGAIN):
        tree = parse_json(read_plain(path))
        if not isinstance(tree, dict) or not isinstance(tree.get("weight_map"), dict):
            raise ValueError("it has no weight_map")
        named = tree["weight_map"]
        unsafe = [each for each in map(describe_unsafe_name, named.values()) if each]
        if unsafe:
            raise ValueError(unsafe[0])
        if not named:
            raise ValueError("its weight_map is empty")
    return named


def _describe_none(folder: Path) -> str:
    """What to do where there is no safetensors file of the usual name."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"{folder}: it holds {', '.join(map(quote, others[:3]))}, and neither {WHOLE_NAME} nor "
            f"{INDEX_NAME}. Save the model by transformers' save_pretrained, which names them so."
        )
    if pickles:
        return (
            f"{folder}: its weights are pickled ({', '.join(map(quote, pickles[:3]))}), and such a "
            "file can run any program when it is opened, so lmscale opens none. Take a copy with "
            "safetensors; or write one, by torch's loader of numbers alone: python -c \"import "
            "torch; from safetensors.torch import save_file; w = "
            f"torch.load('{folder / pickles[0]}', weights_only=True); save_file({{k: "
            f"v.contiguous().clone() for k, v in w.items()}}, '{folder / WHOLE_NAME}')\""
        )
    return (
        f"{folder}: there is no {WHOLE_NAME} here, and no {INDEX_NAME}. Name the folder of a model "
        "with its weights."
    )
