"""What a run is exported as: an architecture, and the class there that ends in what the run learns.

No torch: ``lmscale config show`` says it before the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmscale.config.hf.architecture import Architecture, Head
from lmscale.config.hf.folding import Folding, plan_folding
from lmscale.config.masked import MaskedPartsConfig
from lmscale.config.model import ModelConfig, Sizes
from lmscale.config.run import RunConfig
from lmscale.config.supervised import AnswersConfig, LabelledConfig, NumbersConfig, TagsConfig
from lmscale.errors import ConfigError

_HEADS: Mapping[str, Head] = {"tags": "tags", "answers": "answers"}
_AVOIDED = ("qwen2",)
"""Beside it transformers (5.24) makes Qwen 2's own tokenizer, whatever the files say: such a
section becomes a Llama whose other biases are 0.
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What becomes of a run there."""

    architecture: Architecture
    head: Head
    folding: Folding
    sizes: Sizes
    labels: dict[str, Any]
    """Settings of config.json that say what the outputs of a classifier stand for."""

    @property
    def class_name(self) -> str:
        return self.architecture.classes[self.head]

    @property
    def section(self) -> ModelConfig:
        """That which the architecture is: the run's, or one of the same function."""
        return self.folding.section

    @property
    def settings(self) -> dict[str, Any]:
        """config.json but for special ids and the dtype."""
        named = {"architectures": [self.class_name], "model_type": self.architecture.model_type}
        return named | self.architecture.render(self.section, self.sizes) | self.labels


def plan_target(config: RunConfig, *, model_type: str | None = None) -> Target:
    """What a run is there, or as the architecture of its family that ``model_type`` names. Raises
    ``ConfigError`` where nothing there, or not that one, can be it.
    """
    sizes = export_sizes(config)
    section = config.model.without_adapters
    architecture, folding = plan_folding(section, sizes, avoided=_AVOIDED, model_type=model_type)
    return Target(
        architecture=architecture,
        head=plan_head(config, architecture),
        folding=folding,
        sizes=sizes,
        labels=render_labels(config),
    )


def export_sizes(config: RunConfig) -> Sizes:
    """A run's sizes without the rows of the embedding that only round it up."""
    is_given = config.model.vocab_size is not None
    return replace(config.sizes, vocab_size=config.vocab_size if is_given else config.num_ids)


def plan_head(config: RunConfig, architecture: Architecture) -> Head:
    """What the class has to end in, by the objective. Raises ``ConfigError`` where the
    architecture has no class that ends so.

    Two orders of a text are BERT's next sentence, of which the first is that it follows, too. Three
    of them have no place there: what is exported tells tokens alone.
    """
    objective, usual = config.objective, next(iter(architecture.classes))
    if isinstance(objective, MaskedPartsConfig):
        return "order" if objective.classes == 2 and "order" in architecture.classes else usual
    if not isinstance(objective, LabelledConfig):
        return usual
    head: Head = _HEADS.get(objective.name, "texts")
    if head not in architecture.classes:
        raise ConfigError(
            f"objective.name = {objective.name!r}: {architecture.model_type}'s classifier in "
            "transformers has a layer more than ours, so that no class there is this model. BERT's "
            "is the same: leave out model.positions, norm_first and activation."
        )
    return head


def render_labels(config: RunConfig) -> dict[str, Any]:
    """``id2label`` and its like; nothing of an objective that labels nothing."""
    objective = config.objective
    if isinstance(objective, AnswersConfig):
        return {}  # what two outputs are, its class says
    if isinstance(objective, NumbersConfig):
        return _number(("number",)) | {"problem_type": "regression"}
    if isinstance(objective, LabelledConfig):
        is_one = not isinstance(objective, TagsConfig)
        kind = {"problem_type": "single_label_classification"} if is_one else {}
        return _number(objective.names) | kind
    return {}


def _number(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def describe_target(config: RunConfig) -> str:
    """``llama (LlamaForCausalLM)``, with what is folded; or why it is nothing there."""
    try:
        target = plan_target(config)
    except ConfigError as error:
        return f"nothing: {'; '.join(error.problems)}"
    told = "".join(f"; {each}" for each in target.folding.told)
    return f"{target.architecture.model_type} ({target.class_name}){told}"
