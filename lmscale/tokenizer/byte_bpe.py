"""Train byte-level BPE by the library ``tokenizers``: every byte is a piece, so none is unknown.

Text is first cut as Llama 3 and GPT-4 cut it, into words with the space before them, numbers,
punctuation and white space, and no piece reaches over a cut: so none holds the end of a line and
the beginning of the next. Marks stay with their letters, as Devanagari and Thai need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lmscale.config.data import MIN_VOCABULARY, TokenizerConfig
from lmscale.config.special_tokens import BYTE_BPE_PIECES
from lmscale.errors import DataError
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer, import_tokenizers
from lmscale.tokenizer.names_in_text import pattern_inside

MIN_FREQUENCY = 2  # a pair that is found once teaches nothing
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|NUMBER|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""With single digits these are Qwen 3.5's: llama.cpp knows cuts only by the names of models."""


def train_byte_bpe(
    passages: Iterable[str], config: TokenizerConfig, made_by: dict[str, Any]
) -> HuggingFaceTokenizer:
    """The same passages give the same bytes on any machine. Raises ``DataError`` for too large a
    vocabulary, saying which would fit.
    """
    library = import_tokenizers()
    number = r"\p{N}" if config.split_digits else r"\p{N}{1,3}"
    words = library.pre_tokenizers.Split(
        library.Regex(_WORDS.replace("NUMBER", number)), "isolated"
    )
    letters = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    steps = [words, letters]
    special = config.all_special_tokens
    if special:  # no piece of text may be learned that reads like one
        inside = library.Regex(pattern_inside(special))
        steps.append(library.pre_tokenizers.Split(inside, "merged_with_previous"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[*BYTE_BPE_PIECES.values(), *special],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    has_text = False

    def watch() -> Iterator[str]:
        nonlocal has_text
        for passage in passages:
            has_text = has_text or bool(passage)
            yield passage

    tokenizer.train_from_iterator(watch(), trainer)
    # What was cut so has taught no merge that leads to one of them: no text has to be cut for it,
    # which llama.cpp could not.
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, letters])
    num_pieces = tokenizer.get_vocab_size()
    if not has_text:
        raise DataError("The corpus holds no text to train a tokenizer on.")
    if num_pieces < config.vocab_size:
        smaller = f"Set tokenizer.vocab_size to {num_pieces:,} or less, or train"
        raise DataError(
            f"tokenizer.vocab_size = {config.vocab_size:,} is more than the corpus can fill: at "
            f"most {num_pieces:,} pieces fit. "
            f"{smaller if num_pieces >= MIN_VOCABULARY else 'Train'} on more text."
        )
    special_ids = {role: tokenizer.token_to_id(piece) for role, piece in BYTE_BPE_PIECES.items()}
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), made_by, special_ids)
