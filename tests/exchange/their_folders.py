"""Folders of transformers' models, tiny ones, as its ``save_pretrained`` writes them, and of their
tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from theirs import import_transformers
from tokenizers import Tokenizer, models, pre_tokenizers

transformers = import_transformers()
LLAMA = {
    "vocab_size": 512, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

VOCAB = 512
BERT_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_PIECES = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{99 - n}>" for n in range(100)))
BODY = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = BODY | {"intermediate_size": 64, "max_position_embeddings": 64}
T5 = {
    "vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 48, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 3}


def save_theirs(
    folder: Path,
    name: str = "Llama",
    ends_in: str = "ForCausalLM",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **settings: Any,
) -> Path:
    """A model with random weights, norms around 1."""
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{ends_in}")(config)
    for parameter in model.parameters():
        is_scale = parameter.ndim == 1 and bool((parameter == 1).all())
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write model.safetensors anew with what ``change`` has done to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(folder: Path, pieces: tuple[str, ...], unk: str, **roles: str) -> None:
    """A WordPiece vocabulary: special pieces, letters, and pieces that no text has."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*pieces, *letters, *(f"##{letter}" for letter in letters)]
    names += [f"[unused{number}]" for number in range(VOCAB - len(names))]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=99))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(pieces))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unk, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
