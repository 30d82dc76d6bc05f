# Shape letters: B batch, T time, D model width.
"""The encoder Transformer of BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and ModernBERT
(Warner et al. 2024, arXiv 2412.13663): every token sees both sides of its document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.model_base import GATED
from lmscale.model.attention import Attention
from lmscale.model.family import Family, Head, Model
from lmscale.model.feed_forward import FUNCTIONS, build_feed_forward
from lmscale.model.initialize import Embedding, Linear, build_norm
from lmscale.model.layout import Layout, Mask, attention_backend, build_layout
from lmscale.model.recompute import run_block
from lmscale.model.rotary import plan_rotation
from lmscale.plan.account import account_encoder


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each normed before it or, with its residual, after it.

    Free of data-dependent Python, so that ``block.compile()`` gives one graph.
    """

    def __init__(self, config: EncoderConfig, *, is_normed: bool) -> None:
        """``is_normed``: what comes in has been normed, and attention takes it as it is."""
        super().__init__()
        self.norm_first = config.norm_first
        self.attention_norm = nn.Identity() if is_normed else build_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotation: Tensor | None, mask: Mask) -> Tensor:
        if self.norm_first:
            attended_BTD = self.attention(self.attention_norm(x_BTD), rotation, mask)
            x_BTD = x_BTD + self.dropout(attended_BTD)
            return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        attended_BTD = self.attention(x_BTD, rotation, mask)
        x_BTD = self.attention_norm(x_BTD + self.dropout(attended_BTD))
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))


class EncoderHead(Head):
    """A layer with its norm before the output matrix, which has a bias, as BERT's has them."""

    def __init__(self, config: EncoderConfig, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__(weight, std=config.init_std, bias=bias)
        self.dense = Linear(config.width, config.width, bias=config.bias, std=config.init_std)
        self.function = FUNCTIONS[GATED.get(config.activation, config.activation)]
        self.norm = build_norm(config)

    def forward(self, hidden: Tensor, score: Callable[..., Any] = F.linear) -> Any:
        return super().forward(self.norm(self.function(self.dense(hidden))), score)


class Encoder(Model):
    """BERT's, RoBERTa's and ModernBERT's architecture, by the switches of its settings."""

    def __init__(self, config: EncoderConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.config = config
        width, std = config.width, config.init_std
        self.embedding = Embedding(sizes.vocab_size, width, std=std)
        self.position_embedding = (
            Embedding(sizes.max_positions, width, std=std)
            if config.positions == "learned"
            else None
        )
        self.type_embedding = (
            Embedding(config.token_types, width, std=std) if config.token_types else None
        )
        self.embedding_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, is_normed=config.norm_first and number == 0)
            for number in range(config.layers)
        )
        self.norm = build_norm(config) if config.norm_first else nn.Identity()
        self.pooler = Linear(width, width, bias=config.bias, std=std) if config.pooler else None
        classes = config.text_classes
        self.classifier = Linear(width, classes, bias=True, std=std) if classes else None
        tags = config.token_classes
        self.token_classifier = Linear(width, tags, bias=True, std=std) if tags else None
        weight = self.embedding.weight
        if not config.tied_embeddings:
            weight = nn.Parameter(torch.empty(sizes.vocab_size, width))
        self.head = EncoderHead(config, weight, nn.Parameter(torch.empty(sizes.vocab_size)))

    def lay_out(
        self, begins_BT: Tensor, *, mask_documents: bool, lengths_B: Tensor | None = None
    ) -> Layout:
        return self.lay_out_packed(
            begins_BT, most_documents=None, mask_documents=mask_documents, lengths_B=lengths_B
        )

    def lay_out_packed(
        self,
        begins_BT: Tensor,
        *,
        most_documents: int | None,
        mask_documents: bool,
        lengths_B: Tensor | None = None,
    ) -> Layout:
        config, columns_T = self.config, torch.arange(begins_BT.shape[1], device=begins_BT.device)
        if not mask_documents:  # a row is one document
            begins_BT = (columns_T == 0).expand_as(begins_BT)
            most_documents = begins_BT.shape[0]
        if lengths_B is not None:  # and padding another one
            begins_BT = begins_BT | (columns_T == lengths_B[:, None])
            most_documents = most_documents and most_documents + begins_BT.shape[0]
        backend = attention_backend(
            device_type=begins_BT.device.type,
            masked=True,
            dropout=config.dropout if self.training else 0.0,
            head_width=config.resolved_head_width,
            can_pack=most_documents is not None and self.can_pack(config),
            choice=config.attention,
        )
        return build_layout(
            begins_BT,
            backend,
            set(config.layer_windows),
            sees_ahead=True,
            most_documents=most_documents,
        )

    def forward(self, ids_BT: Tensor, layout: Layout, types_BT: Tensor | None = None) -> Tensor:
        """``types_BT``: int64, the tokens' types; without it all are of type 0."""
        x_BTD = self.embedding(ids_BT)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(layout.positions)
        if self.type_embedding is not None:
            types_BT = torch.zeros_like(ids_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + self.type_embedding(types_BT)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        rotations = self._plan_rotations(layout)
        for number, (block, window) in enumerate(
            zip(self.blocks, self.config.layer_windows, strict=True)
        ):
            rotation, mask = rotations[window > 0], layout.masks[window]
            x_BTD = run_block(self.config, number, block, x_BTD, rotation, mask)
        return self.norm(x_BTD)

    def pool(self, hidden_BD: Tensor) -> Tensor:
        """What is said of a text, [B, D], by the state of its first token."""
        assert self.pooler is not None, "model.pooler is off"
        return torch.tanh(self.pooler(hidden_BD))

    def classify(self, hidden_BD: Tensor, *, drops: bool = False) -> Tensor:
        """Logits of a text's classes, [B, classes], by the state of its first token. ``drops``: in
        training some of the pooled state, as BERT's classifiers have it.
        """
        assert self.classifier is not None, "model.text_classes is 0"
        pooled_BD = self.pool(hidden_BD)
        return self.classifier(self.dropout(pooled_BD) if drops else pooled_BD)

    def classify_tokens(self, hidden_ND: Tensor, *, drops: bool = True) -> Tensor:
        """Logits of tokens' classes, [N, classes], by their states, of which in training some are
        dropped.
        """
        assert self.token_classifier is not None, "model.token_classes is 0"
        return self.token_classifier(self.dropout(hidden_ND) if drops else hidden_ND)

    def begins_anew(self, name: str) -> bool:
        return name.partition(".")[0] in ("pooler", "classifier", "token_classifier")

    def _plan_rotations(self, layout: Layout) -> Mapping[bool, Tensor | None]:
        """Of the layers without and with a sliding window."""
        config = self.config
        if config.positions != "rope":
            return {False: None, True: None}
        thetas = {False: config.rope_theta, True: config.local_rope_theta or config.rope_theta}
        return {
            is_local: plan_rotation(
                layout.positions, head_width=config.resolved_head_width, theta=theta
            )
            for is_local, theta in thetas.items()
        }

    def blocks_to_compile(self) -> Iterable[nn.Module]:
        return self.blocks


ENCODER = Family(build=Encoder, account=account_encoder)
