"""Tokenizers as other programs make them, small, and texts that tell them apart."""

from __future__ import annotations

import io
import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

ENGLISH = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)][:20]
CHINESE = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？\n",
]
TEXTS = [
    *ENGLISH[:8],
    "\n".join(ENGLISH[:4]),
    "".join(CHINESE) * 80,
    "中文和 English 混排，1234567890。",
    "def f(x):\n\treturn  x ** 2\r\n\r\n\n# ½ ﬁ Ａ ①",
    "👩‍👩‍👧‍👦 \U0001f600 \U0010ffff e\u0301 \u00e9",
    "a \u2581 b \u2581\u2581c  ",
    "  two   runs   ",
    "",
    " ",
    "\n",
    "</s> <s> <unk> <pad> <0x0A> [SEP] [CLS] [UNK] <|end|> <extra> </s></s>",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_sentencepiece(**changes: Any) -> bytes:
    """As Llama's and Mistral's are: BPE, byte fallback, a space before a text."""
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "max_sentence_length": 10**6,
        "minloglevel": 3,
        "num_threads": 1,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ENGLISH[:8], *CHINESE]),
        model_writer=model,
        **(settings | changes),
    )
    return model.getvalue()


def train_wordpiece() -> tokenizers.Tokenizer:
    """As BERT's is, with the truncation and padding that saved ones often have."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(ENGLISH[:8] + CHINESE, trainer)
    ends = [(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def train_unigram(*, byte_fallback: bool = False) -> tokenizers.Tokenizer:
    """As T5's and XLNet's are: U+2581 for spaces, ``</s>`` an entry like any other."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<pad>", "</s>", "<unk>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH[:8] + CHINESE, trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [] if byte_fallback else tree["added_tokens"]
    tree["model"]["byte_fallback"] = byte_fallback
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def train_byte_level(*, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """As GPT-2's is, with an added token that is not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ENGLISH[:8] + CHINESE, trainer)
    tokenizer.add_tokens(["<extra>"])
    return tokenizer


def as_library(content: str) -> tokenizers.Tokenizer:
    """What ids are compared with: the library's own object, for text alone."""
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.no_padding()
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    return theirs


def write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
