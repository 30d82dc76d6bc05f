"""Which baseline is a yardstick of a run, and whether it can be asked tasks: by its configuration
alone, before anything is loaded.
"""

from __future__ import annotations

from typing import Literal

from lmscale.config import RunConfig
from lmscale.config.objective import (
    OBJECTIVES,
    CausalConfig,
    DenoisedConfig,
    DistillConfig,
    MaskedConfig,
    ObjectiveConfig,
    PrefixConfig,
)
from lmscale.config.supervised import CompletionConfig, DialogueConfig, PairsConfig
from lmscale.errors import ConfigError

BITS = 21  # of an id in a trigram's key: two words of context and the word that follows make 63
BOUNDARY = 2**BITS - 1  # the context before a document, a window or an answer, as a word

BaselineName = Literal["ngram", "unigram"]
OBJECTIVES_OF: dict[str, tuple[type[ObjectiveConfig], ...]] = {
    # Of what is written from left to right.
    "ngram": (
        *(CausalConfig, DistillConfig, PrefixConfig, DenoisedConfig, PairsConfig, CompletionConfig),
        DialogueConfig,
    ),
    "unigram": (MaskedConfig,),
}


def check_baseline(config: RunConfig, name: BaselineName) -> None:
    """Raise ``ConfigError`` for an objective that it is no yardstick of, or too many pieces."""
    if not isinstance(config.objective, OBJECTIVES_OF[name]):
        own = OBJECTIVES.own.items()
        fitting = [other for other, section in own if issubclass(section, OBJECTIVES_OF[name])]
        raise ConfigError(
            f"--baseline {name} is only for the objectives {', '.join(fitting)}; this run has "
            f"{config.objective.name}. Leave it out."
        )
    if name == "ngram" and config.num_ids >= BOUNDARY:
        raise ConfigError(
            f"--baseline ngram takes at most {BOUNDARY - 1:,} pieces; here there are "
            f"{config.num_ids:,}. Leave it out."
        )


def check_answers(config: RunConfig) -> None:
    """Raise ``ConfigError`` for a run whose model predicts no next tokens: tasks ask for these."""
    if problem := config.find_task_problem():
        raise ConfigError(f"--tasks: {problem}.")
