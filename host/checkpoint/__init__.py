"""Readers of float checkpoints: Hugging Face Llama folders and llama2.c's files.

No reader ever unpickles.
"""

from __future__ import annotations

import re
from pathlib import Path

from host.checkpoint import huggingface, llama2c
from host.checkpoint.model import Checkpoint, FloatArray, LlamaConfig, layer_tensor
from host.checkpoint.pickles import is_pickle_name, pickle_error
from host.errors import InputError, explain_os_error

__all__ = ["Checkpoint", "FloatArray", "LlamaConfig", "layer_tensor", "load_checkpoint"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def load_checkpoint(path: str | Path, tokenizer: Path | None = None) -> Checkpoint:
    """Opens a checkpoint; its weights are read when they are looked up.

    Args:
        path: A Hugging Face Llama folder, a llama2.c version-0 ``.bin``, or ``owner/model``, a name
            on the Hugging Face hub.
        tokenizer: The tokenizer's file, where it does not lie with the model.

    Raises:
        InputError: It does not exist, is damaged, is a pickle, or is not supported.
    """
    try:
        return _load(Path(path), tokenizer)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _load(place: Path, tokenizer: Path | None) -> Checkpoint:
    if place.is_dir():
        if (place / "descriptor.bin").is_file() and not (place / huggingface.CONFIG).is_file():
            raise InputError(
                f"{place} is a package already", "Name the checkpoint it was made from"
            )
        return huggingface.read_folder(place, tokenizer, _folder_name(place.resolve()))
    if place.exists():
        if is_pickle_name(place):
            raise pickle_error(place)
        if place.suffix in (".safetensors", ".json"):
            raise InputError(
                f"{place} is one file of a model", f"Name the folder it lies in, {place.parent}"
            )
        return llama2c.read_file(place, tokenizer)
    if _HUB_NAME.fullmatch(str(place)):
        folder = huggingface.fetch_from_hub(str(place))
        return huggingface.read_folder(folder, tokenizer, str(place).split("/")[1])
    raise InputError(f"{place} does not exist", "Check the name")


def _folder_name(folder: Path) -> str:
    if folder.parent.name == "snapshots":
        # The hub's cache: models--OWNER--NAME/snapshots/REVISION.
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
