"""A GGUF file that lmscale has written of a run → the run's model with the weights in the file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from lmscale.config.hf.llama_cpp import choose_llama_cpp
from lmscale.config.model import ModelConfig
from lmscale.errors import DataError
from lmscale.evaluation.found import FoundRun
from lmscale.exchange.exported import MARK_OF_FILE
from lmscale.exchange.gguf_tensors import plan_tensors, separate
from lmscale.exchange.plan_export import plan_export
from lmscale.model.family import Model, build_model_on


class Stored(NamedTuple):
    """What a file holds."""

    model: Model  # fp32, on the CPU, in eval mode
    section: ModelConfig  # of that model, with its sizes
    dtype: str  # of most of the weights, in GGUF's words, small
    bytes: int  # of all tensors


def read_checkpoint_hash(path: Path) -> str:
    """That of the checkpoint that the file was made of. Raises ``DataError`` for another file."""
    import gguf

    try:
        field = gguf.GGUFReader(str(path)).fields.get(MARK_OF_FILE.decode())
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is no GGUF file that can be read: {error}.") from None
    if field is None:
        raise DataError(
            f"{path} is no file that lmscale has written of a run, so it is not known whose "
            "weights it holds. Make one: lmscale quantize"
        )
    return str(field.contents())


def read_gguf(found: FoundRun, path: Path) -> Stored:
    """The weights that a file of this checkpoint holds, as they are worth: rounded.

    Raises ``DataError`` where tensors are missing.
    """
    import gguf

    plan = plan_export(found.config)
    there, section = choose_llama_cpp(plan.architecture.model_type, plan.section, plan.sizes)
    tensors = plan_tensors(plan.rules, there, section, "fp32")  # names and rows, whatever the dtype
    held = {each.name: each for each in gguf.GGUFReader(str(path)).tensors}
    if missing := [each.name for each in tensors if each.name not in held]:
        raise DataError(f"{path} lacks {', '.join(missing[:5])}. Make it again: lmscale quantize")
    cpu = torch.device("cpu")
    model = build_model_on(section, plan.sizes, device=cpu, dtype=torch.float32).eval()
    elements: dict[str, int] = {}
    with torch.no_grad():
        for tensor in tensors:
            stored = held[tensor.name]
            name = stored.tensor_type.name.lower()
            elements[name] = elements.get(name, 0) + int(stored.n_elements)
            if not tensor.parameter:
                continue
            values = gguf.quants.dequantize(stored.data, stored.tensor_type).astype("f4")
            part = torch.from_numpy(values.copy()).reshape(tensor.shape)
            part = separate(part, tensor.heads) if tensor.heads else part
            model.get_parameter(tensor.parameter)[tensor.rows].copy_(part)
    sizes = {"vocab_size": plan.sizes.vocab_size, "max_positions": plan.sizes.max_positions}
    return Stored(
        model=model,
        section=section.model_copy(update=sizes),
        dtype=max(elements, key=lambda name: elements[name]),
        bytes=sum(int(each.n_bytes) for each in held.values()),
    )
