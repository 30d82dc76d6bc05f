"""TensorBoard's "custom scalars" page: what a person looks at first, side by side, by patterns."""

from __future__ import annotations

from collections.abc import Mapping

from lmscale.config import RunConfig
from lmscale.config.objective import NextTokenConfig
from lmscale.objective.objective import SOURCE_LOSS
from lmscale.runs.loss_curves import BY_STEP, BY_TOKENS
from lmscale.train.planned import LOSS, MEMORY, SPEED

Charts = Mapping[str, Mapping[str, list[str]]]  # page → title → patterns of names


def plan_charts(config: RunConfig, *, world_size: int, has_peak: bool) -> Charts:
    """The pages in the order in which a run is judged; no chart that this run leaves empty.

    A pattern is held against the beginning of a name, so each says where the name ends. Titles and
    patterns are alike from run to run as far as may be: TensorBoard puts runs together in one chart
    only where these are equal.
    """
    return {
        "loss": _loss(config),
        "learning": _learning(config),
        "mixture": {
            "share of every source in the samples": ["mixture/.*/share$"],
            "how often every source was read": ["mixture/.*/epochs$"],
        },
        "speed": _speed(world_size=world_size, has_peak=has_peak),
        "goodput": {
            "where the wall time went, all of it": ["goodput/.*"],
            "what was lost": ["goodput/(redone|undone|down)$"],
            "what held the steps up": ["goodput/(stalls|saves|evaluation|other)$"],
            "getting to the first step": ["goodput/(start|load)$"],
        },
        "guard": {
            "steps that were not finite, spikes, skipped steps": [
                "guard/(nonfinite|spike|skipped)_steps$",
                "train/skipped_steps$",
            ],
            "rewinds": ["guard/rewinds$"],
            "samples jumped": ["guard/jumped_samples$"],
        },
        "checkpoints": {
            "seconds in which a save held the steps up": [
                "checkpoint/(stopped|waited|copy)_seconds$"
            ],
            "seconds until it was committed": ["checkpoint/commit_seconds$"],
            "bytes": ["checkpoint/bytes$"],
            "GB/s": ["checkpoint/gigabytes_per_second$"],
        },
    }


def _loss(config: RunConfig) -> dict[str, list[str]]:
    """Trained and held out together, then what there is of each source and part alone."""
    charts = {
        "loss over steps, trained and held out": [f"{BY_STEP}$", f"{LOSS}$"],
        "loss over tokens, trained and held out": [f"{BY_TOKENS}($|/)"],
    }
    if len(config.stream.sources) > 1 and isinstance(config.objective, NextTokenConfig):
        charts["trained, every source"] = [f"train/{SOURCE_LOSS}/.*"]
    sets = config.evaluation.of_loop
    # In one chart: of a curve of three points alone TensorBoard's axis is too long.
    if len(sets) > 1:
        charts["held out, every set"] = ["evaluation/.*/loss$"]
    if sets and "bits_per_byte" in config.objective.set_figures:
        charts["held out, bits per byte"] = ["evaluation/.*/bits_per_byte$"]
    return charts


def _learning(config: RunConfig) -> dict[str, list[str]]:
    """The gradient, the rate, and the objective's figures beside its loss."""
    names = [name for name in config.objective.figures if name != "loss"]
    if not getattr(config.objective, "z_loss", 0.0):
        names = [name for name in names if name != "z_loss"]  # 0 all the way
    shares = [name for name in names if "accuracy" in name]
    losses = [name for name in names if name not in shares]
    charts = {
        "gradient norm": ["train/gradient_norm$"],
        "learning rate": ["train/learning_rate$"],
    }
    if config.engine.precision == "fp16":
        charts["loss scale"] = ["train/loss_scale$"]
    if counted := getattr(config.objective, "counted", ()):
        charts["F1, held out"] = [f"evaluation/.*/{name}$" for name in counted]
    for title, chosen in (("accuracy", shares), ("terms and parts of the loss", losses)):
        if chosen:
            charts[title] = [f"(train|evaluation/.*)/{name}$" for name in chosen]
    return charts


def _speed(*, world_size: int, has_peak: bool) -> dict[str, list[str]]:
    charts = {
        "tokens trained on per second": ["speed/targets_per_second$"],
        "positions per second, measured and planned": ["speed/positions_per_second$", f"{SPEED}$"],
        "bytes of a rank's memory, measured and planned": ["memory/peak_bytes$", f"{MEMORY}$"],
    }
    if has_peak:
        charts["MFU, both conventions"] = ["speed/mfu_.*"]
    charts["waiting for data"] = ["speed/data_wait_fraction$"]
    charts["goodput, of the wall time and of the running time"] = ["speed/(running_)?goodput$"]
    if world_size > 1:
        charts["slowest rank, times the median's work"] = ["speed/slowest_ratio$"]
    return charts
