# Shape letters: B batch, T time, M remembered time, S both, D model width.
"""The decoder Transformer: embeddings, blocks, final norm, and a head that others score with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.model.attention import Attention, KeyValueCache
from lmscale.model.family import Family, Head, Model
from lmscale.model.feed_forward import build_feed_forward
from lmscale.model.initialize import Embedding, Linear, build_norm
from lmscale.model.layout import (
    Layout,
    Mask,
    attention_backend,
    build_layout,
    build_step_layout,
    show_prefixes,
)
from lmscale.model.mup import scale_matrices
from lmscale.model.recompute import run_block
from lmscale.model.rotary import plan_rotation
from lmscale.plan.account import account_decoder


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added to the residual stream.

    Free of data-dependent Python, so that ``block.compile()`` gives one graph.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.attention_output_norm, self.feed_forward_output_norm = (
            build_norm(config) if config.output_norms else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor | None,
        mask: Mask,
        cache: KeyValueCache | None = None,
        memory_BMD: Tensor | None = None,
    ) -> Tensor:
        """``memory_BMD``: this block's inputs of the tokens before, which the new ones look at."""
        seen_BSD = x_BTD if memory_BMD is None else torch.cat([memory_BMD, x_BTD], dim=1)
        num_remembered = seen_BSD.shape[1] - x_BTD.shape[1]
        attended_BTD = self.attention(
            self.attention_norm(seen_BSD), rotation, mask, cache, num_remembered
        )
        x_BTD = x_BTD + self.dropout(self.attention_output_norm(attended_BTD))
        fed_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + self.dropout(self.feed_forward_output_norm(fed_BTD))


class Decoder(Model):
    """GPT-2's and Llama's architecture, by the switches of its settings."""

    def __init__(self, config: DecoderConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.config = config
        std = config.init_std
        self.embedding = Embedding(sizes.vocab_size, config.width, std=std)
        self.position_embedding = (
            Embedding(sizes.max_positions, config.width, std=std)
            if config.positions == "learned"
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = build_norm(config)
        classes = config.text_classes
        self.classifier = Linear(config.width, classes, bias=False, std=std) if classes else None
        self.head = Head(
            self.embedding.weight
            if config.tied_embeddings
            else nn.Parameter(torch.empty(sizes.vocab_size, config.width)),
            std=std,
            softcap=config.logit_softcap,
            scale=1 / config.width_ratio,
        )
        scale_matrices(self.blocks, config.width_ratio)

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
        config, sliding_windows = self.config, set(self.config.layer_windows)
        if not mask_documents:  # a row is one document
            begins_BT = torch.zeros_like(begins_BT)
            begins_BT[:, 0] = True
            most_documents = begins_BT.shape[0]
        is_capped = config.attention_softcap > 0  # which CUDA's causal kernels cannot
        backend = attention_backend(
            device_type=begins_BT.device.type,
            masked=mask_documents or any(sliding_windows) or is_capped or self._is_cut,
            dropout=config.dropout if self.training else 0.0,
            head_width=config.resolved_head_width,
            can_pack=not is_capped and most_documents is not None and self.can_pack(config),
            choice="sdpa" if self._is_cut else config.attention,
        )
        return build_layout(begins_BT, backend, sliding_windows, most_documents=most_documents)

    def lay_out_prefixes(self, begins_BT: Tensor, is_prefix_BT: Tensor) -> Layout:
        layout = build_layout(begins_BT, "dense", set(self.config.layer_windows))
        return show_prefixes(layout, begins_BT, is_prefix_BT)

    def forward(
        self, ids_BT: Tensor, layout: Layout, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        x_BTD = self.embedding(ids_BT)
        if self.config.scaled_embeddings:
            x_BTD = x_BTD * self.config.width**0.5
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(layout.positions)
            rotation = None
        else:
            rotation = plan_rotation(
                layout.positions,
                head_width=self.config.resolved_head_width,
                theta=self.config.rope_theta,
                scaling=self.config.rope_scaling,
            )
        x_BTD = self.dropout(x_BTD)
        if self._is_cut:
            return self.norm(self._run_segments(x_BTD, rotation, layout))
        for number, block in enumerate(self.blocks):
            mask = layout.masks[self.config.layer_windows[number]]
            cache = caches[number] if caches is not None else None
            x_BTD = run_block(self.config, number, block, x_BTD, rotation, mask, cache)
        return self.norm(x_BTD)

    def classify(self, hidden_BD: Tensor) -> Tensor:
        """Logits of a text's classes, [B, classes], by the state of its last token."""
        assert self.classifier is not None, "model.text_classes is 0"
        return self.classifier(hidden_BD)

    def begins_anew(self, name: str) -> bool:
        return name.startswith("classifier.")

    def _run_segments(self, x_BTD: Tensor, rotation: Tensor | None, layout: Layout) -> Tensor:
        """The blocks over one segment of the rows after another; what a token sees of earlier
        segments, the blocks' inputs there, carries no gradient (Dai et al. 2019, arXiv 1901.02860).
        """
        windows, batch, width = self.config.layer_windows, x_BTD.shape[0], x_BTD.shape[2]
        memories = [x_BTD.new_empty(batch, 0, width) for _ in windows]
        outputs, last = [], 0
        for segment_BTD in x_BTD.split(-(-x_BTD.shape[1] // self.config.segments), dim=1):
            first, last = last, last + segment_BTD.shape[1]
            for number, block in enumerate(self.blocks):
                memory_BMD, window = memories[number], windows[number]
                seen = slice(first - memory_BMD.shape[1], last)
                mask = layout.masks[window]
                assert isinstance(mask, Tensor), "lay_out gives dense masks where rows are cut"
                kept_BSD = torch.cat([memory_BMD, segment_BTD.detach()], dim=1)
                oldest = max(kept_BSD.shape[1] + 1 - window, 0) if window else 0
                memories[number] = kept_BSD[:, oldest:]
                segment_BTD = run_block(
                    self.config,
                    number,
                    block,
                    segment_BTD,
                    rotation[:, :, seen] if rotation is not None else None,
                    mask[:, :, first:last, seen],
                    None,
                    memory_BMD,
                )
            outputs.append(segment_BTD)
        return torch.cat(outputs, dim=1)

    @property
    def _is_cut(self) -> bool:
        return self.training and self.config.segments > 1

    def blocks_to_compile(self) -> Iterable[nn.Module]:
        return self.blocks

    def build_state(self, *, batch: int, capacity: int) -> list[KeyValueCache]:
        shape = (batch, self.config.resolved_kv_heads, capacity, self.config.resolved_head_width)
        empty = self.embedding.weight.new_empty
        return [KeyValueCache(empty(shape), empty(shape)) for _ in self.blocks]

    def extend(self, ids_BT: Tensor, state: list[KeyValueCache]) -> Tensor:
        batch, length = ids_BT.shape
        layout = build_step_layout(
            batch=batch,
            offset=state[0].length,
            length=length,
            device=ids_BT.device,
            sliding_windows=set(self.config.layer_windows),
            num_prefix=state[0].num_prefix,
        )
        return self(ids_BT, layout, state)

    def read_prefix(self, ids_BT: Tensor, state: list[KeyValueCache]) -> Tensor:
        for cache in state:
            cache.num_prefix = ids_BT.shape[1]
        return self.extend(ids_BT, state)


DECODER = Family(build=Decoder, account=account_decoder)
