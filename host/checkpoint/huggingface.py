"""Reads a folder as transformers' `save_pretrained` writes it, or fetches it from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from host.checkpoint.llama_config import read_config
from host.checkpoint.model import (
    HEAD,
    Checkpoint,
    LazyTensors,
    LlamaConfig,
    model_name,
    tensor_shapes,
)
from host.checkpoint.pickles import pickle_error, pickles_in
from host.checkpoint.safetensors_file import DTYPES, StoredTensor, list_tensors
from host.checkpoint.tokens import fit_tokenizer
from host.errors import InputError
from host.files import is_file
from host.strict_json import plain, read_object
from host.tokenizer import load_tokenizer

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX_BYTES = 8 << 20
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
_REMEDY = "Get the checkpoint again"
_HUB_FILES = [CONFIG, "*.safetensors", INDEX, "tokenizer.model", "tokenizer*.json"]
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def read_folder(folder: Path, tokenizer: Path | None, name: str) -> Checkpoint:
    """Reads a Hugging Face Llama folder.

    Args:
        folder: Has config.json, model.safetensors or its shards, and a tokenizer.
        tokenizer: The tokenizer's file or folder, where it is not in the folder.
        name: What people call the model.

    Raises:
        InputError: A file is missing or damaged, or the model is not supported.
    """
    if not is_file(folder / CONFIG):
        if found := pickles_in(folder):
            raise pickle_error(found[0])
        raise InputError(
            f"{folder} has no {CONFIG}",
            "Name a Hugging Face model's folder, or a llama2.c .bin file",
        )
    content = read_object(folder / CONFIG, _REMEDY)
    stored = _stored(folder)
    spec = load_tokenizer(tokenizer or folder)
    config = read_config(content, model_name(name), spec.bos, spec.eos, spec.add_bos)
    _check(config, stored)
    readers = {key: stored[key].read for key in tensor_shapes(config)}
    source = f"{model_name(name)}, {SINGLE}"
    return Checkpoint(config, LazyTensors(readers), fit_tokenizer(spec, config.vocab_size), source)


def fetch_from_hub(name: str) -> Path:
    """Returns the folder into which a model of the Hugging Face hub was downloaded.

    Args:
        name: ``owner/model``.

    Raises:
        InputError: huggingface-hub is not installed, or the hub does not give the model.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name} is not here, and fetching it from the Hugging Face hub needs huggingface-hub",
            "Check the path, or run `pip install huggingface-hub`",
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        # The library lets the errors of several HTTP clients through, with no common root.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(
            f"{name} is not here, and the Hugging Face hub does not give it: {reason}",
            "Check the name and the network, or download the model's folder by other means",
        ) from error


def _stored(folder: Path) -> dict[str, StoredTensor]:
    if is_file(folder / SINGLE):
        return list_tensors(folder / SINGLE)
    if not is_file(folder / INDEX):
        if found := pickles_in(folder):
            raise pickle_error(found[0])
        raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}", _REMEDY)
    index = read_object(folder / INDEX, _REMEDY, _INDEX_BYTES)
    weight_map = index.child("weight_map")
    shards: dict[str, dict[str, StoredTensor]] = {}
    stored: dict[str, StoredTensor] = {}
    for key in weight_map:
        shard = weight_map.text(key)
        if not _SHARD.fullmatch(shard):
            raise index.wrong(f"{shard[:40]!a} is no name of a safetensors file beside it")
        if shard not in shards:
            shards[shard] = list_tensors(folder / shard)
        if key not in shards[shard]:
            raise InputError(f"{shard} has no tensor {plain(key)}, which {INDEX} says", _REMEDY)
        stored[key] = shards[shard][key]
    return stored


def _check(config: LlamaConfig, stored: dict[str, StoredTensor]) -> None:
    shapes = tensor_shapes(config)
    for key, shape in shapes.items():
        if key not in stored:
            raise InputError(f"The checkpoint has no tensor {key}", _REMEDY)
        tensor = stored[key]
        if tensor.shape != shape:
            raise InputError(
                f"The tensor {key} is {_times(tensor.shape)}, where {CONFIG} asks for "
                f"{_times(shape)}",
                "Check that the files belong to one model",
            )
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"The tensor {key} is stored as {tensor.dtype}, which is not supported",
                "Save the model as float32, float16 or bfloat16",
            )
    for key in stored:
        if key not in shapes and key != HEAD and not key.endswith(_DERIVED):
            what = "a bias" if key.endswith(".bias") else "not part of a plain Llama model"
            raise InputError(
                f"The checkpoint has the tensor {plain(key)}, which is {what}",
                "Use a plain Llama model",
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
