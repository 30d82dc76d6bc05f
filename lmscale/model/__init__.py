"""The decoder Transformer: tensors in, hidden states out. It knows no data and no loss.

``build_model`` gives the module, ``init_weights`` its values, ``build_layout`` what a micro-batch
needs beside its ids, and ``accounting`` the parameters and FLOPs before anything is built.
"""

from lmscale.model.accounting import (
    Flops,
    ParameterCount,
    count_parameters,
    flops_per_token,
)
from lmscale.model.cache import KeyValueCache, build_caches
from lmscale.model.decoder import Decoder, build_model
from lmscale.model.family import Head, Model
from lmscale.model.initialize import (
    Declared,
    declared_parameters,
    init_weights,
    initial_value,
    parameter_kinds,
)
from lmscale.model.layout import (
    Layout,
    attention_backend,
    build_layout,
    build_step_layout,
    mark_starts,
)

__all__ = [
    "Declared",
    "Decoder",
    "Flops",
    "Head",
    "KeyValueCache",
    "Layout",
    "Model",
    "ParameterCount",
    "attention_backend",
    "build_caches",
    "build_layout",
    "build_model",
    "build_step_layout",
    "count_parameters",
    "declared_parameters",
    "flops_per_token",
    "init_weights",
    "initial_value",
    "mark_starts",
    "parameter_kinds",
]
