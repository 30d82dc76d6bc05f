"""What ``engine.precision: auto`` is on the devices of a run's ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lmscale.config import RunConfig
from lmscale.ranks.attempt import node_name
from lmscale.ranks.collectives import gather_json
from lmscale.ranks.device import device_name, faster_precision, product_rates

if TYPE_CHECKING:
    import torch

AUTO = "auto"
# Of each precision. With units for bf16 it is several times as fast as fp32, and without them many
# times as slow, so that the best of a few products tells one from the other on a busy core, too.
MEASURE_SECONDS = 0.02


class Fitting(NamedTuple):
    """A precision, and why a device fits it."""

    precision: str  # bf16 or fp32
    reason: str


def with_precision(config: RunConfig, precision: str) -> RunConfig:
    """``config`` with another precision, such as one in place of auto."""
    engine = config.engine.model_copy(update={"precision": precision})
    return config.model_copy(update={"engine": engine})


def fit_precision(device: torch.device) -> Fitting:
    """bf16 where the device computes in it, fp32 elsewhere: asked of a GPU, measured on a CPU."""
    import torch

    if device.type == "cuda":
        return fit_gpu(device_name(device), torch.cuda.is_bf16_supported(including_emulation=False))
    return fit_cpu(product_rates(MEASURE_SECONDS))


def fit_gpu(name: str, has_bf16: bool) -> Fitting:
    if has_bf16:
        return Fitting("bf16", f"{name} has units for it")
    return Fitting(
        "fp32", f"{name} of {node_name()} has no units for bf16. It has some for fp16, if asked for"
    )


def fit_cpu(rates: dict[str, float]) -> Fitting:
    """By the ``product_rates`` of this CPU."""
    return Fitting(
        faster_precision(rates),
        f"a core of {node_name()} does {rates['bf16']:,.1f} GFLOP/s in bf16 and "
        f"{rates['fp32']:,.1f} in fp32",
    )


def agree_precision(device: torch.device) -> Fitting:
    """The precision for all ranks, which call this together: one that does not compute in bf16
    decides for all, because the others would wait for it in every step.
    """
    fittings = [Fitting(*each) for each in gather_json(fit_precision(device))]
    return next((each for each in fittings if each.precision == "fp32"), fittings[0])
