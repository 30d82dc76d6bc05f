"""The numbers of a fine-tuning: learning rate, epochs, batch, windows; each rule with its source.

Devlin et al. 2019 is BERT (appendix A.3), Radford et al. 2018 GPT-1 (section 4.1), Raffel et al.
2020 T5, Lewis et al. 2020 BART, Turc et al. 2019 the compact BERTs, Hu et al. 2021 LoRA, Mosbach et
al. 2021 fine-tuning on small data, Howard and Ruder 2018 ULMFiT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmscale.config.data import WindowShape
from lmscale.config.finetune import FinetuneConfig
from lmscale.config.model_base import ModelConfig
from lmscale.config.objective_base import ObjectiveConfig
from lmscale.stream.packing import plan_best_fit

BASE_WIDTH = 768  # of the models whose learning rates these are
# Of the whole model at that width, with AdamW.
RATES: Mapping[str, tuple[float, str]] = {
    "encoder": (3e-5, "BERT's (Devlin et al. 2019, A.3)"),
    "decoder": (6.25e-5, "GPT-1's (Radford et al. 2018)"),
    "encoder_decoder": (3e-4, "T5's under AdamW"),
    "bart": (3e-5, "BART's (Lewis et al. 2020)"),
    "recurrent": (1e-3, "that of LSTMs under Adam (Howard and Ruder 2018)"),
}
HEAD_RATE = 1e-3  # of a new layer over states that stay as they are
LORA_RATIO = 10.0  # adapters begin at 0 and bear more (Hu et al. 2021, table 9 ff.: 2e-4 to 5e-4)
EPOCHS, MOST_EPOCHS = 3, 20  # Devlin et al. 2019; Mosbach et al. 2021 of small data
MIN_STEPS = 600  # so that small data has enough updates, where the epochs allow
MIN_LENGTH = 32
MICRO_TOKENS = {False: 4096, True: 32_768}  # at once, without and with a GPU
EVALUATIONS = 2  # an epoch
MOST_EVALUATIONS = 60


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What follows from the lengths of the documents."""

    sequence_length: int
    windows: int
    """Of an epoch."""
    global_windows: int
    micro_windows: int
    epochs: float
    steps: int
    every_steps: int
    """Of saves and evaluations."""
    documents: int

    @property
    def documents_per_step(self) -> float:
        return self.documents / max(1, self.windows) * self.global_windows


def longest_window(model: ModelConfig, shape: WindowShape) -> int | None:
    """The most tokens of a document that the base can take; None: there is no such bound."""
    if getattr(model, "positions", "") == "learned" and model.max_positions:
        return model.max_positions + shape.overlap
    return None


def plan_sizes(
    config: FinetuneConfig,
    objective: ObjectiveConfig,
    lengths: np.ndarray,
    longest: int,
    *,
    limit: int | None,
    has_gpu: bool,
) -> Sizes:
    """``lengths``: of the training documents; ``longest``: of all. ``limit``: ``longest_window``.

    A window is the smallest power of two that holds every document, so that a step of some
    documents is not padded much, and its documents are counted in few of them.
    """
    length = MIN_LENGTH
    while objective.window(length).tokens < longest:
        length *= 2
    if limit is not None and objective.window(length).tokens > limit:
        length = limit - objective.window(length).overlap
    windows = int(plan_best_fit(lengths, objective.window(length))[2].max()) + 1
    wanted = config.documents_per_step * windows / len(lengths)
    # Whole numbers that 1, 2, 4 and 8 ranks can share; of few windows a smaller power of two.
    group = round(wanted / 8) * 8 if wanted >= 8 else 2 ** round(math.log2(max(1.0, wanted)))
    epochs = config.epochs or _choose_epochs(windows / group)
    steps = max(1, math.ceil(epochs * windows / group))
    every = max(1, round(windows / group / EVALUATIONS), math.ceil(steps / MOST_EVALUATIONS))
    return Sizes(
        sequence_length=length,
        windows=windows,
        global_windows=group,
        micro_windows=max(1, min(group, MICRO_TOKENS[has_gpu] // length)),
        epochs=epochs,
        steps=steps,
        every_steps=min(every, steps),
        documents=len(lengths),
    )


def _choose_epochs(steps_of_one: float) -> int:
    return min(MOST_EPOCHS, max(EPOCHS, math.ceil(MIN_STEPS / steps_of_one)))


def plan_rate(config: FinetuneConfig, model: ModelConfig) -> tuple[float, str]:
    """The peak learning rate, and why it is this one."""
    if config.learning_rate is not None:
        return config.learning_rate, "as asked for"
    kind = config.trainable.kind
    if kind == "head":
        return HEAD_RATE, "a new layer alone bears a high one"
    is_bart = model.family == "encoder_decoder" and getattr(model, "positions", "") == "learned"
    rate, why = RATES["bart" if is_bart else model.family]
    width = getattr(model, "width", BASE_WIDTH)
    if model.family != "recurrent" and width != BASE_WIDTH:
        rate *= min(10.0, max(0.25, BASE_WIDTH / width))
        why += f", × {BASE_WIDTH} / width = {width}: smaller models bear more (Turc et al. 2019)"
    if kind == "lora":
        rate, why = rate * LORA_RATIO, f"{LORA_RATIO:g} × that of the whole model, {why}"
    return float(f"{rate:.2g}"), why
