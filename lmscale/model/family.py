# Shape letters: B batch, T time, D model width, V vocabulary.
"""What a family of models is to the rest of lmscale: a few methods, and a head to score with.

A family is a section of settings in ``FAMILIES`` (``lmscale/config/model.py``), and the ``Family``
that the section names: how a model is built, and what it costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.kinds import import_implementation
from lmscale.config.model import ModelConfig, Sizes
from lmscale.errors import ConfigError
from lmscale.model.attention import cap_softly
from lmscale.model.initialize import Declared, undeclared_parameters
from lmscale.model.lora import add_adapters, is_adapter
from lmscale.model.varlen import can_pack
from lmscale.plan.account import Account as Account  # what a family of one's own imports from here
from lmscale.plan.account import Flops as Flops
from lmscale.plan.account import with_adapters


class Head(nn.Module):
    """Owns the output matrix, [V, D], and hands it to whoever scores the hidden states; with it,
    where it has one, the bias, [V]. ``softcap``: see ``cap_softly``. ``scale``: of hidden states.

    ZeRO-3 gathers a module's parameters around its forward and backward: a loss that uses the
    matrix has to run inside this forward, not beside it.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        std: float,
        bias: nn.Parameter | None = None,
        softcap: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.std, self.softcap, self.scale = std, softcap, scale

    def forward(self, hidden: Tensor, score: Callable[..., Any] | None = None) -> Any:
        """``score(hidden, weight)``, or ``score(hidden, weight, bias)``; by default the logits.

        Where logits are capped, ``score`` has to take ``softcap``.
        """
        hidden = hidden if self.scale == 1 else hidden * self.scale
        inputs = (hidden, self.weight) if self.bias is None else (hidden, self.weight, self.bias)
        if score is None:
            return cap_softly(F.linear(*inputs), self.softcap)
        return score(*inputs, softcap=self.softcap) if self.softcap else score(*inputs)

    def declare(self) -> Mapping[str, Declared]:
        weight = Declared(kind="head", std=self.std)
        return {"weight": weight, "bias": Declared(kind="bias")}


class Model(nn.Module, ABC):
    """Ids → hidden states. ``train/initial.py`` or a checkpoint gives the parameters values.

    An objective calls ``lay_out``, the model, and ``head`` with its way of scoring; a text
    generator ``build_state``, ``extend`` and ``head``.
    """

    head: Head

    def __init__(self, settings: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.family, self.offers = settings.family, settings.offers
        self.vocab_size = sizes.vocab_size
        self.max_positions = sizes.max_positions

    @abstractmethod
    def lay_out(
        self, begins_BT: Tensor, *, mask_documents: bool, lengths_B: Tensor | None = None
    ) -> Any:
        """What ``forward`` needs beside the ids, made once a micro-batch; the family's own value.

        ``begins_BT`` is bool, True where a document begins. With ``mask_documents`` no document
        may depend on another of its row. Positions at or behind ``lengths_B`` are padding, which
        nothing before them may depend on: a causal family has no use for it.
        """

    def lay_out_packed(
        self,
        begins_BT: Tensor,
        *,
        most_documents: int | None,
        mask_documents: bool,
        lengths_B: Tensor | None = None,
    ) -> Any:
        """``lay_out`` where the host knows that there are no more than ``most_documents``: a family
        may use that, and need not.
        """
        return self.lay_out(begins_BT, mask_documents=mask_documents, lengths_B=lengths_B)

    def can_pack(self, config: Any) -> bool:
        """Whether attention of ``config``'s heads can do with the cuts between documents."""
        weight = self.head.weight
        return can_pack(
            device=weight.device, dtype=weight.dtype, head_width=config.resolved_head_width
        )

    def lay_out_prefixes(self, begins_BT: Tensor, is_prefix_BT: Tensor) -> Any:
        """``lay_out`` with masked documents, the first tokens of which, where ``is_prefix_BT`` is
        True, are seen by all of their document. Only of a family that offers it.
        """
        raise NotImplementedError(f"{type(self).__name__} shows no prefix as a whole")

    @abstractmethod
    def forward(self, ids_BT: Tensor, layout: Any) -> Tensor:
        """Hidden states [B, T, D] of int64 ids; ``self.head`` turns them into logits or a loss."""

    def begins_anew(self, name: str) -> bool:
        """Whether a parameter is of a layer for one task, which a run that begins with another
        run's weights draws where that run's is another one or missing.
        """
        return False

    def blocks_to_compile(self) -> Iterable[nn.Module]:
        """The repeated parts, each free of data-dependent Python: for ``engine.compile``."""
        return ()

    def build_state(self, *, batch: int, capacity: int) -> Any:
        """What generation keeps of at most ``capacity`` tokens a row; nothing is seen yet.

        Of a family without this method and ``extend`` nothing can be generated.
        """
        raise NotImplementedError(f"{type(self).__name__} generates no text")

    def extend(self, ids_BT: Tensor, state: Any) -> Tensor:
        """Hidden states [B, T, D] of new tokens behind those in ``state``, which takes them up."""
        raise NotImplementedError(f"{type(self).__name__} generates no text")

    def read_prefix(self, ids_BT: Tensor, state: Any) -> Tensor:
        """``extend`` of a state's first tokens, seen by all as by ``lay_out_prefixes``. Only of a
        family that offers it.
        """
        raise NotImplementedError(f"{type(self).__name__} shows no prefix as a whole")

    def generates(self, *, sees_prompt_whole: bool) -> bool:
        """Whether the family has ``build_state``, ``extend`` and, for that, ``read_prefix``."""
        names = ("build_state", "extend", "read_prefix")[: 2 + sees_prompt_whole]
        return all(getattr(type(self), name) is not getattr(Model, name) for name in names)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class CrossModel(Model):
    """The model of a family that offers ``Ability.CROSS``: it reads one sequence, the source, and
    writes another one, the target.

    ``lay_out`` is of the source, ``lay_out_target`` joins both, and the model is called with the
    target's ids.
    """

    @abstractmethod
    def lay_out_target(self, begins_BT: Tensor, source_ids_BS: Tensor, source_layout: Any) -> Any:
        """What ``forward`` needs beside the target's ids.

        ``begins_BT`` as for ``lay_out``. Where the source's documents are masked, document k of the
        target reads document k of the source alone; a target's padding lies behind all documents.
        """

    def read_source(self, ids_BS: Tensor, state: Any, lengths_B: Tensor | None = None) -> None:
        """Take up, in the new state of ``build_state``, what is read; ``extend`` then writes. What
        lies at or behind ``lengths_B`` is padding.
        """
        raise NotImplementedError(f"{type(self).__name__} generates no text")

    def generates(self, *, sees_prompt_whole: bool) -> bool:
        reads = type(self).read_source is not CrossModel.read_source
        return reads and super().generates(sees_prompt_whole=sees_prompt_whole)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of a family are made, as its section in the configuration names it."""

    build: Callable[[Any, Sizes], Model]
    """Settings and sizes → the module, on torch's current default device and dtype."""
    account: Callable[[Any, Sizes], Account]
    """Settings and sizes → what that module would cost."""


def build_model(settings: ModelConfig, sizes: Sizes) -> Model:
    """The module of a configuration, on torch's current default device and dtype.

    Its matrices hold whatever the memory held, until first weights or a checkpoint fills them.
    Raises ``ConfigError`` for parameters that no module declares.
    """
    model = import_implementation(settings, Family).build(settings, sizes)
    if names := undeclared_parameters(model):
        raise ConfigError(
            f"model.family = {settings.family!r}: no module declares the parameters "
            f"{', '.join(names)}. Make them of lmscale's Linear, Embedding or Head, or declare "
            "them (docs/extending.md)."
        )
    if settings.lora.rank:
        add_adapters(model, settings.lora, model.begins_anew)
    return model


def build_model_on(
    settings: ModelConfig, sizes: Sizes, *, device: torch.device, dtype: torch.dtype
) -> Model:
    """``build_model`` on a device and in a dtype of its own."""
    usual_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return build_model(settings, sizes)
    finally:
        torch.set_default_dtype(usual_dtype)


def account_model(settings: ModelConfig, sizes: Sizes) -> Account:
    """The cost of the model that ``build_model`` would give."""
    account = import_implementation(settings, Family).account(settings, sizes)
    if settings.lora.rank == 0:
        return account
    meta = build_model_on(settings, sizes, device=torch.device("meta"), dtype=torch.float32)
    count = sum(p.numel() for name, p in meta.named_parameters() if is_adapter(name))
    return with_adapters(account, count)
