"""SentencePiece tokenizers for the training tools: trained on text, or taken from llama2.c."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

import sentencepiece

from tools.train_network import TrainingError, write_json

BOS, EOS = 1, 2
# Generated at import, so that a type checker finds nothing in it.
proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
_FIRST_BYTE, _FIRST_PIECE = 3, 259


def train_tokenizer(texts: list[Path], vocabulary: int, model: Path) -> None:
    """Trains a byte-fallback BPE tokenizer of `vocabulary` pieces and writes `model`."""
    if vocabulary <= _FIRST_PIECE:
        raise TrainingError(
            f"vocabulary = {vocabulary} leaves no room beside the {_FIRST_PIECE} control and byte "
            "tokens: choose a larger one."
        )
    sentencepiece.SentencePieceTrainer.train(
        input=[str(path) for path in texts],
        model_prefix=str(model.with_suffix("")),
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=2,
        minloglevel=2,
    )
    model.with_suffix(".vocab").unlink()


def convert_llama2c_tokenizer(source: Path, model: Path) -> None:
    """Writes llama2.c's `tokenizer.bin` as the SentencePiece model it was made from.

    The file has, little-endian: int32 longest piece, then for each piece float32 score,
    int32 length, bytes. Spaces there stand for SentencePiece's U+2581.
    """
    data = source.read_bytes()
    out = proto.ModelProto()
    offset = 4
    while offset < len(data):
        if offset + 8 > len(data):
            raise TrainingError(f"{source} ends within a piece: fetch it again.")
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8
        raw = data[offset : offset + length]
        if length < 0 or len(raw) != length:
            raise TrainingError(f"{source} ends within a piece: fetch it again.")
        offset += length
        index = len(out.pieces)
        piece = out.pieces.add()
        piece.score = score
        if index == 0:
            piece.piece, piece.type = "<unk>", proto.ModelProto.SentencePiece.UNKNOWN
        elif index in (BOS, EOS):
            piece.piece = "<s>" if index == BOS else "</s>"
            piece.type = proto.ModelProto.SentencePiece.CONTROL
        elif index < _FIRST_PIECE:
            piece.piece = f"<0x{index - _FIRST_BYTE:02X}>"
            piece.type = proto.ModelProto.SentencePiece.BYTE
        else:
            piece.piece = raw.decode("utf-8").replace(" ", "\u2581")
            piece.type = proto.ModelProto.SentencePiece.NORMAL
    if len(out.pieces) <= _FIRST_PIECE:
        raise TrainingError(f"{source} has {len(out.pieces)} pieces, too few for a tokenizer.")
    out.trainer_spec.model_type = proto.TrainerSpec.BPE
    out.trainer_spec.vocab_size = len(out.pieces)
    out.trainer_spec.byte_fallback = True
    out.trainer_spec.unk_id, out.trainer_spec.bos_id, out.trainer_spec.eos_id = 0, BOS, EOS
    out.trainer_spec.pad_id = -1
    out.normalizer_spec.name = "identity"
    out.normalizer_spec.add_dummy_prefix = True
    out.normalizer_spec.remove_extra_whitespaces = False
    out.normalizer_spec.escape_whitespaces = True
    model.write_bytes(out.SerializeToString())


def load_tokenizer(model: Path) -> sentencepiece.SentencePieceProcessor:
    """Opens a SentencePiece model whose bos and eos are tokens 1 and 2."""
    if not model.is_file():
        raise TrainingError(f"{model} does not exist: name a SentencePiece .model.")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    if (tokenizer.bos_id(), tokenizer.eos_id()) != (BOS, EOS):
        raise TrainingError(f"{model} does not have <s> = 1 and </s> = 2: use one that has.")
    return tokenizer


def save_tokenizer(model: Path, folder: Path, context: int) -> None:
    """Puts tokenizer.model and the configuration that transformers reads into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "model_max_length": context,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "legacy": False,
        },
    )
