"""Finds a model's tokenizer and reads it, whichever of the known kinds it is."""

from __future__ import annotations

import os
from pathlib import Path

from host.errors import InputError
from host.files import is_file, read_file
from host.strict_json import parse_fields
from host.tokenizer.llama2c import read_llama2c
from host.tokenizer.sentencepiece_model import read_sentencepiece
from host.tokenizer.spec import TokenizerSpec
from host.tokenizer.tokenizer_json import read_tokenizer_json

_IN_FOLDER = ("tokenizer.model", "tokenizer.json", "tokenizer.bin")
_MAX_BYTES = 32 << 20


def load_tokenizer(path: Path) -> TokenizerSpec:
    """Reads a tokenizer.

    Args:
        path: A SentencePiece `.model`, a Hugging Face tokenizer `.json`, llama2.c's or this kit's
            tokenizer `.bin`; or the folder of a model, in which `tokenizer.model` comes before
            `tokenizer.json`. Beside the first two, `tokenizer_config.json` is heeded.

    Raises:
        InputError: The file is missing, damaged, or of a kind that is not supported.
    """
    if path.is_dir():
        present = [path / name for name in _IN_FOLDER if is_file(path / name)]
        if not present:
            raise InputError(
                f"{path} has no tokenizer.model and no tokenizer.json",
                "Get the tokenizer that belongs to the model",
            )
        path = present[0]
    data = read_file(path, _MAX_BYTES, "Check the name")
    name = str(path)
    if path.suffix == ".bin":
        if data.startswith(b"TTOK"):
            return TokenizerSpec.from_bin(data, name)
        return read_llama2c(data, name)
    if path.suffix not in (".model", ".json"):
        raise InputError(
            f"{path} is no known kind of tokenizer",
            "Name a tokenizer.model, a tokenizer.json or llama2.c's tokenizer .bin",
        )
    config = _config(path.with_name("tokenizer_config.json"))
    add_bos = config.get("add_bos_token")
    stated = add_bos if isinstance(add_bos, bool) else None
    if path.suffix == ".model":
        return read_sentencepiece(data, name, add_bos=stated is not False)
    return read_tokenizer_json(
        data,
        name,
        add_bos=stated,
        bos_token=_token(config, "bos_token", "<s>"),
        eos_token=_token(config, "eos_token", "</s>"),
        unk_token=_token(config, "unk_token", "<unk>"),
    )


def _config(path: Path) -> dict[str, object]:
    if not os.path.lexists(path):
        return {}
    remedy = "Get the file again"
    return parse_fields(read_file(path, _MAX_BYTES, remedy), str(path), remedy)


def _token(config: dict[str, object], key: str, default: str) -> str:
    """A token is named by its text, or by an object that has it as `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default
