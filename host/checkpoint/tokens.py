"""Fits a tokenizer to a model's vocabulary."""

from __future__ import annotations

from dataclasses import replace

from host.errors import InputError
from host.tokenizer import Piece, PieceType, TokenizerSpec


def fit_tokenizer(spec: TokenizerSpec, vocab: int) -> TokenizerSpec:
    """Returns a tokenizer with a piece for each row of the embedding.

    Embeddings are often padded to a round number of rows. Such rows become control pieces: never
    found in text, and shown as nothing.

    Args:
        spec: The model's tokenizer.
        vocab: Rows of the embedding.

    Raises:
        InputError: The tokenizer has more pieces than the embedding has rows.
    """
    missing = vocab - spec.vocab_size
    if missing < 0:
        raise InputError(
            f"The tokenizer has {spec.vocab_size} pieces and the model {vocab} tokens",
            "Name the tokenizer that belongs to the model",
        )
    padding = (
        Piece(f"<pad_{index}>".encode(), PieceType.CONTROL)
        for index in range(spec.vocab_size, vocab)
    )
    return replace(spec, pieces=(*spec.pieces, *padding)) if missing else spec
