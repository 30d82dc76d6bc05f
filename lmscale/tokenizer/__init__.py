"""Documents → a SentencePiece tokenizer whose round trip is exact. Loads no torch."""

from lmscale.tokenizer.codec import SPECIAL_IDS, Tokenizer, load_tokenizer
from lmscale.tokenizer.train import train_tokenizer

__all__ = ["SPECIAL_IDS", "Tokenizer", "load_tokenizer", "train_tokenizer"]
