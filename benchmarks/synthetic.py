"""What the step and GPU benchmarks train on: known shapes, and micro-batches of random tokens."""

from __future__ import annotations

from collections.abc import Sequence

from lmscale.config import RunConfig
from lmscale.config.load import parse_config
from lmscale.train.random_batches import MEAN_DOCUMENT_TOKENS, random_steps

__all__ = ["MEAN_DOCUMENT_TOKENS", "SHAPES", "build_config", "random_steps"]

# Every shape is a list of overrides of lmscale's defaults, as `--set` takes them.
SHAPES: dict[str, tuple[str, ...]] = {
    "tiny": (
        "model={layers: 2, width: 64, heads: 4, kv_heads: 2, vocab_size: 512}",
        "tokenizer.vocab_size=512",
        "stream.sequence_length=64",
        "batch={global_windows: 4, micro_windows: 2}",
    ),
    # Next to no arithmetic: what a step costs the host beside it.
    "narrow": (
        "model={layers: 2, width: 8, heads: 2, ffn_width: 16, vocab_size: 512}",
        "tokenizer.vocab_size=512",
        "stream.sequence_length=16",
        "batch={global_windows: 2, micro_windows: 1}",
    ),
    # A step of about half a second on one CPU core.
    "small": (
        "model={layers: 4, width: 256, heads: 4, vocab_size: 4096, tied_embeddings: true}",
        "tokenizer.vocab_size=4096",
        "stream.sequence_length=256",
        "batch={global_windows: 8, micro_windows: 4}",
    ),
    # 200 million parameters, for checkpoints: so few tokens that a CPU does a step in seconds.
    "200m": (
        "model={layers: 13, width: 1024, heads: 16, ffn_width: 2816, vocab_size: 32000, "
        "tied_embeddings: true}",
        "stream.sequence_length=64",
        "batch={global_windows: 2, micro_windows: 1}",
    ),
    # GPT-2's smallest (Radford et al. 2019); 50,257 ids rounded up to 50,304 = 393 · 128.
    # The logits of a micro-batch exist at once, so none is computed twice: 2·768·50,304 FLOPs a
    # token, 9 % of the step, for 10 GB.
    "gpt2_124m": (
        "model={layers: 12, width: 768, heads: 12, vocab_size: 50304, positions: learned, "
        "norm: layernorm, activation: gelu, bias: true, tied_embeddings: true}",
        "objective.chunk_tokens=32768",
        "stream.sequence_length=1024",
        "stream.mask_documents=false",
        "batch={global_windows: 128, micro_windows: 32}",
    ),
    # 1.34 billion parameters in Llama's manner (Touvron et al. 2023).
    "llama_1b": (
        "model={layers: 24, width: 2048, heads: 16, ffn_width: 5504, vocab_size: 32000}",
        "objective.chunk_tokens=16384",
        "stream.sequence_length=2048",
        "stream.mask_documents=false",
        "batch={global_windows: 16, micro_windows: 8}",
    ),
}


def build_config(shape: str, overrides: Sequence[str] = ()) -> RunConfig:
    """lmscale's defaults with a shape and more overrides; the schedule is constant, the rate
    small.
    """
    steady = (
        *("engine.precision=bf16", "engine.schedule={kind: constant}"),
        "train.steps=1000000",
    )
    return parse_config("run: {name: benchmark}", [*SHAPES[shape], *steady, *overrides], name=shape)
