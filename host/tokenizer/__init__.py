"""The tokenizer in Python: readers of its files, `tokenizer.bin`, and a twin of the C code."""

from host.tokenizer.load import load_tokenizer
from host.tokenizer.spec import Piece, PieceType, TokenizerSpec
from host.tokenizer.tokenizer import Decoder, Tokenizer

__all__ = ["Decoder", "Piece", "PieceType", "Tokenizer", "TokenizerSpec", "load_tokenizer"]
