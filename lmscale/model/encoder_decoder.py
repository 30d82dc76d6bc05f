# Shape letters: B batch, S time of what is read, T time of what is written, D model width, H heads,
# V head width.
"""The encoder-decoder Transformer of T5 (Raffel et al. 2020, arXiv 1910.10683) and BART (Lewis et
al. 2020, arXiv 1910.13461): one sequence is read, another one written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.model.attention import KeyValueCache
from lmscale.model.family import CrossModel, Family, Head
from lmscale.model.feed_forward import FeedForward
from lmscale.model.initialize import Embedding, Linear, build_norm
from lmscale.model.recompute import run_block
from lmscale.model.relative import RelativeBias
from lmscale.plan.account import account_encoder_decoder


@dataclass(frozen=True, kw_only=True)
class SourceLayout:
    """Where the documents of the sequence lie that is read."""

    documents: Tensor  # int32 [B, S]: the number of each token's document, from 1; padding is 0
    positions: Tensor  # int64 [B, S]; they restart at every document when documents are masked
    mask_documents: bool


@dataclass(frozen=True, kw_only=True)
class PairLayout:
    """What is read, and where the documents lie of what is written."""

    source_ids: Tensor  # int64 [B, S]
    source: SourceLayout
    documents: Tensor  # int32 [B, T]
    positions: Tensor  # int64 [B, T]


@dataclass(kw_only=True)
class KeptOfBlock:
    """What generation keeps for a block of the decoder."""

    own: KeyValueCache  # of the tokens written so far
    read: tuple[Tensor, Tensor] | None = None  # keys and values of the source, [B, H, S, V]
    read_bias: Tensor | None = None  # [B, 1, 1, S] of a source with padding; else all is seen


class CrossAttention(nn.Module):
    """Attention of a sequence over itself or over another one.

    ``key_value`` holds the rows of all keys, then those of all values.
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.scale = 1.0 if config.positions == "relative" else None
        width, head_width, std = config.width, config.resolved_head_width, config.init_std
        inner = self.heads * head_width
        # T5's scores are not divided by √V: its queries begin smaller by as much.
        undivided = head_width if self.scale else 1
        self.query = Linear(width, inner, bias=config.bias, std=std or (width * undivided) ** -0.5)
        self.key_value = Linear(width, (inner, inner), bias=config.bias, std=std or width**-0.5)
        self.out = Linear(inner, width, bias=config.bias, std=std or inner**-0.5)

    def forward(self, x_BTD: Tensor, read_BSD: Tensor, bias_BHTS: Tensor) -> Tensor:
        return self.attend(x_BTD, *self.keys_and_values(read_BSD), bias_BHTS)

    def keys_and_values(self, read_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Of what is looked at, each [B, H, S, V]."""
        keys_BSX, values_BSX = self.key_value(read_BSD).chunk(2, dim=-1)
        return self._by_heads(keys_BSX), self._by_heads(values_BSX)

    def attend(
        self, x_BTD: Tensor, k_BHSV: Tensor, v_BHSV: Tensor, bias_BHTS: Tensor | None
    ) -> Tensor:
        """What the queries of ``x_BTD`` see of keys and values; without a bias all of them."""
        y_BHTV = F.scaled_dot_product_attention(
            self._by_heads(self.query(x_BTD)),
            k_BHSV,
            v_BHSV,
            attn_mask=bias_BHTS,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return self.out(y_BHTV.transpose(1, 2).flatten(2))

    def _by_heads(self, x_BTX: Tensor) -> Tensor:
        return x_BTX.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PairBlock(nn.Module):
    """Attention, in a decoder also attention over what was read, and feed-forward.

    Free of data-dependent Python, so that ``block.compile()`` gives one graph.
    """

    def __init__(self, config: EncoderDecoderConfig, *, is_decoder: bool) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention_norm, self.attention = build_norm(config), CrossAttention(config)
        if is_decoder:
            self.cross_norm, self.cross = build_norm(config), CrossAttention(config)
        self.feed_forward_norm = build_norm(config)
        width, inner, std = config.width, config.resolved_ffn_width, config.init_std
        self.feed_forward = FeedForward(
            width,
            inner,
            config.activation,
            bias=config.bias,
            std=std or width**-0.5,
            residual_std=std or inner**-0.5,
            dropout=config.dropout if config.norm_first else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        bias_BHTT: Tensor,
        read_BSD: Tensor | None = None,
        read_bias_BHTS: Tensor | None = None,
    ) -> Tensor:
        x_BTD = self._add(
            x_BTD, self.attention_norm, lambda own: self.attention(own, own, bias_BHTT)
        )
        if read_BSD is not None:
            x_BTD = self._add(
                x_BTD, self.cross_norm, lambda own: self.cross(own, read_BSD, read_bias_BHTS)
            )
        return self._add(x_BTD, self.feed_forward_norm, self.feed_forward)

    def extend(self, x_BTD: Tensor, bias_BHTS: Tensor, kept: KeptOfBlock) -> Tensor:
        """The same of new tokens behind those in ``kept``, which takes them up."""

        def attend(own_BTD: Tensor) -> Tensor:
            seen = kept.own.extend(*self.attention.keys_and_values(own_BTD))
            return self.attention.attend(own_BTD, *seen, bias_BHTS)

        x_BTD = self._add(x_BTD, self.attention_norm, attend)
        assert kept.read is not None, "read_source comes first"
        keys, values = kept.read
        x_BTD = self._add(
            x_BTD, self.cross_norm, lambda own: self.cross.attend(own, keys, values, kept.read_bias)
        )
        return self._add(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _add(self, x_BTD: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x_BTD + self.dropout(part(norm(x_BTD)))
        return norm(x_BTD + self.dropout(part(x_BTD)))


class Stack(nn.Module):
    """The encoder, or the decoder, whose blocks also look at what was read."""

    def __init__(
        self, config: EncoderDecoderConfig, sizes: Sizes, *, layers: int, is_decoder: bool
    ) -> None:
        super().__init__()
        self.config = config
        is_relative, std = config.positions == "relative", config.init_std or 1.0
        self.relative = RelativeBias(config, looks_ahead=not is_decoder) if is_relative else None
        self.position_embedding = (
            None if is_relative else Embedding(sizes.max_positions, config.width, std=std)
        )
        self.embedding_norm = nn.Identity() if config.norm_first else build_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PairBlock(config, is_decoder=is_decoder) for _ in range(layers))
        self.norm = build_norm(config) if config.norm_first else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        visible_BTT: Tensor,
        read_BSD: Tensor | None = None,
        read_bias_B1TS: Tensor | None = None,
    ) -> Tensor:
        x_BTD = self._begin(x_BTD, positions_BT)
        bias_1HTT = None if self.relative is None else self.relative(x_BTD.shape[1])
        bias_BHTT = hide(visible_BTT, x_BTD.dtype, bias_1HTT)
        for number, block in enumerate(self.blocks):
            inputs = (x_BTD, bias_BHTT, read_BSD, read_bias_B1TS)
            x_BTD = run_block(self.config, number, block, *inputs)
        return self.dropout(self.norm(x_BTD))

    def extend(self, x_BTD: Tensor, state: Sequence[KeptOfBlock]) -> Tensor:
        """The decoder's ``forward`` of new tokens of one document a row."""
        length, offset = x_BTD.shape[1], state[0].own.length
        seen = offset + length
        positions_1T = torch.arange(offset, seen, device=x_BTD.device)[None]
        x_BTD = self._begin(x_BTD, positions_1T)
        bias_1HTS = None if self.relative is None else self.relative(seen, offset)
        ones_1TS = torch.ones(1, length, seen, dtype=torch.bool, device=x_BTD.device)
        bias_1HTS = hide(ones_1TS.tril(offset), x_BTD.dtype, bias_1HTS)
        for block, kept in zip(self.blocks, state, strict=True):
            assert isinstance(block, PairBlock)
            x_BTD = block.extend(x_BTD, bias_1HTS, kept)
        return self.norm(x_BTD)

    def _begin(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        return self.dropout(self.embedding_norm(x_BTD))


def hide(visible_BTS: Tensor, dtype: torch.dtype, bias_1HTS: Tensor | None = None) -> Tensor:
    """What is added to the scores, [B, H or 1, T, S]: the bias, and the least number where a query
    may not look. Unlike -inf it keeps the softmax finite of a query that sees nothing: padding.
    """
    if bias_1HTS is None:
        bias_1HTS = torch.zeros(1, 1, 1, 1, dtype=dtype, device=visible_BTS.device)
    return bias_1HTS.masked_fill(~visible_BTS[:, None], torch.finfo(dtype).min)


class EncoderDecoder(CrossModel):
    """T5's and BART's architecture, by the switches of its settings."""

    def __init__(self, config: EncoderDecoderConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        std, width = config.init_std, config.width
        self.embedding = Embedding(sizes.vocab_size, width, std=std or 1.0)
        self.encoder = Stack(config, sizes, layers=config.layers, is_decoder=False)
        layers = config.resolved_decoder_layers
        self.decoder = Stack(config, sizes, layers=layers, is_decoder=True)
        is_tied = config.tied_embeddings
        self.logit_scale = width**-0.5 if is_tied and config.scaled_logits else 1.0
        self.head = Head(
            self.embedding.weight
            if is_tied
            else nn.Parameter(torch.empty(sizes.vocab_size, width)),
            std=std or width**-0.5,
        )

    def lay_out(
        self, begins_BS: Tensor, *, mask_documents: bool, lengths_B: Tensor | None = None
    ) -> SourceLayout:
        documents_BS, positions_BS = _number(begins_BS, mask_documents)
        if lengths_B is not None:
            columns_S = torch.arange(begins_BS.shape[1], device=begins_BS.device)
            documents_BS = torch.where(columns_S < lengths_B[:, None], documents_BS, 0)
        return SourceLayout(
            documents=documents_BS, positions=positions_BS, mask_documents=mask_documents
        )

    def lay_out_target(
        self, begins_BT: Tensor, source_ids_BS: Tensor, source_layout: SourceLayout
    ) -> PairLayout:
        documents_BT, positions_BT = _number(begins_BT, source_layout.mask_documents)
        return PairLayout(
            source_ids=source_ids_BS,
            source=source_layout,
            documents=documents_BT,
            positions=positions_BT,
        )

    def forward(self, ids_BT: Tensor, layout: PairLayout) -> Tensor:
        source, written_BT = layout.source, layout.documents
        read_BSD = self._read(layout.source_ids, source)
        x_BTD = self.decoder(
            self.embedding(ids_BT),
            layout.positions,
            _same_document(written_BT, written_BT).tril(),
            read_BSD,
            hide(_same_document(written_BT, source.documents), read_BSD.dtype),
        )
        return x_BTD * self.logit_scale

    def _read(self, ids_BS: Tensor, source: SourceLayout) -> Tensor:
        seen_BSS = _same_document(source.documents, source.documents)
        return self.encoder(self.embedding(ids_BS), source.positions, seen_BSS)

    def build_state(self, *, batch: int, capacity: int) -> list[KeptOfBlock]:
        config = self.decoder.config
        shape = (batch, config.heads, capacity, config.resolved_head_width)
        empty = self.embedding.weight.new_empty
        return [
            KeptOfBlock(own=KeyValueCache(empty(shape), empty(shape))) for _ in self.decoder.blocks
        ]

    def read_source(
        self, ids_BS: Tensor, state: list[KeptOfBlock], lengths_B: Tensor | None = None
    ) -> None:
        begins_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
        source = self.lay_out(begins_BS, mask_documents=False, lengths_B=lengths_B)
        read_BSD = self._read(ids_BS, source)
        bias_B11S = None
        if lengths_B is not None:
            bias_B11S = hide((source.documents > 0)[:, None], read_BSD.dtype)
        for block, kept in zip(self.decoder.blocks, state, strict=True):
            assert isinstance(block, PairBlock)
            kept.read = block.cross.keys_and_values(read_BSD)
            kept.read_bias = bias_B11S

    def extend(self, ids_BT: Tensor, state: list[KeptOfBlock]) -> Tensor:
        return self.decoder.extend(self.embedding(ids_BT), state) * self.logit_scale

    def blocks_to_compile(self) -> Iterable[nn.Module]:
        return [*self.encoder.blocks, *self.decoder.blocks]


def _number(begins_BT: Tensor, mask_documents: bool) -> tuple[Tensor, Tensor]:
    """Of each token its document's number, from 1, and its position."""
    columns_T = torch.arange(begins_BT.shape[1], device=begins_BT.device)
    positions_BT = columns_T.expand(begins_BT.shape)
    if not mask_documents:
        return torch.ones_like(begins_BT, dtype=torch.int32), positions_BT
    start_BT = torch.where(begins_BT, columns_T, 0).cummax(1).values
    is_first_BT = begins_BT | (columns_T == 0)
    return is_first_BT.cumsum(1, dtype=torch.int32), positions_BT - start_BT


def _same_document(documents_BT: Tensor, documents_BS: Tensor) -> Tensor:
    """bool [B, T, S]: may this query look at this key?"""
    same_BTS = documents_BT[:, :, None] == documents_BS[:, None, :]
    return same_BTS & (documents_BS > 0)[:, None, :]


ENCODER_DECODER = Family(build=EncoderDecoder, account=account_encoder_decoder)
