"""SentencePiece tokenizers for the training tools: trained on text, or taken from llama2.c."""

from __future__ import annotations

import importlib
import io
import struct
from pathlib import Path
from typing import Any

import sentencepiece

from host.atomic import write_file
from host.errors import InputError
from host.files import read_file
from host.tokenizer.llama2c import read_llama2c
from host.tokenizer.sentencepiece_model import read_sentencepiece
from tools.train_network import write_json

BOS, EOS = 1, 2
# Generated at import, so that a type checker finds nothing in it.
proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
_MAX_BYTES = 32 << 20


def train_tokenizer(stories: list[str], vocabulary: int) -> bytes:
    """Trains a byte-fallback BPE tokenizer of `vocabulary` pieces on the stories' lines."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for story in stories for line in story.split("\n")),
            model_writer=model,
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
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip() or str(error)
        raise InputError(
            f"No tokenizer of {vocabulary} pieces can be learnt from the texts ({reason})",
            "Change `vocabulary`, or add text",
        ) from error
    return model.getvalue()


def read_tokenizer(path: Path) -> bytes:
    """Reads a SentencePiece model whose bos and eos are tokens 1 and 2, or llama2.c's `.bin`.

    Returns:
        The SentencePiece model; of a `.bin`, the one that it was made from.

    Raises:
        InputError: The file cannot be read, is damaged or is not supported.
    """
    data = read_file(path, _MAX_BYTES, "Name a tokenizer.model or llama2.c's tokenizer .bin")
    if path.suffix == ".bin":
        return _from_llama2c(data, str(path))
    spec = read_sentencepiece(data, str(path))
    if (spec.bos, spec.eos) != (BOS, EOS):
        raise InputError(f"{path} does not have <s> = 1 and </s> = 2", "Use a tokenizer that has")
    return data


def _from_llama2c(data: bytes, name: str) -> bytes:
    out = proto.ModelProto()
    offset = 4
    for piece in read_llama2c(data, name).pieces:
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8 + length
        out.pieces.add(piece=piece.text.decode(), score=score, type=int(piece.type))
    out.trainer_spec.model_type = proto.TrainerSpec.BPE
    out.trainer_spec.vocab_size = len(out.pieces)
    out.trainer_spec.byte_fallback = True
    out.trainer_spec.unk_id, out.trainer_spec.bos_id, out.trainer_spec.eos_id = 0, BOS, EOS
    out.trainer_spec.pad_id = -1
    out.normalizer_spec.name = "identity"
    out.normalizer_spec.add_dummy_prefix = True
    out.normalizer_spec.remove_extra_whitespaces = False
    out.normalizer_spec.escape_whitespaces = True
    return bytes(out.SerializeToString())


def open_tokenizer(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    """Opens what `read_tokenizer` returned from the file of this name."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise InputError(f"{name} is refused by SentencePiece ({error})", "Use another") from error


def save_tokenizer(model: bytes, folder: Path, context: int) -> None:
    """Puts tokenizer.model and the configuration that transformers reads into a folder."""
    write_file(folder / "tokenizer.model", model)
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
