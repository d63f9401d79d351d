"""Reads llama2.c's version-0 `.bin` (github.com/karpathy/llama2.c, `export.py`).

i32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; the vocabulary is negative
where the head is a matrix of its own. Then float32 arrays, each for all layers, without gaps.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from host.checkpoint.files import read_floats
from host.checkpoint.model import (
    EMBED,
    FINAL_NORM,
    HEAD,
    Checkpoint,
    FloatArray,
    LazyTensors,
    LlamaConfig,
    layer_tensor,
    model_name,
    tensor_shapes,
)
from host.checkpoint.pickles import is_pickle, is_pickle_name, pickle_error
from host.checkpoint.tokens import fit_tokenizer
from host.errors import InputError
from host.files import is_file, opened
from host.tokenizer import load_tokenizer

_HEADER = struct.Struct("<7i")
_MAGIC_LATER = b"24ka"
_OTHER_FORMATS = {b"GGUF": "a GGUF file", b"TLLM": "a descriptor of a package"}
_EPS, _THETA = 1e-5, 10000.0
_BOS, _EOS = 1, 2
_MOST = 1 << 24
_REMEDY = "Name a Hugging Face model's folder, or a llama2.c .bin file"
_ORDER = (
    "norm1",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "norm2",
    "gate_proj",
    "down_proj",
    "up_proj",
)


def read_file(path: Path, tokenizer: Path | None) -> Checkpoint:
    """Reads a llama2.c checkpoint.

    Args:
        path: The file.
        tokenizer: Its tokenizer; where omitted, ``tok<vocabulary>.bin`` or ``tokenizer.bin`` beside
            the file.

    Raises:
        InputError: The file is a pickle, of another format, or not as long as its header says; or
            the tokenizer is missing or another model's.
    """
    with opened(path) as file:
        start = file.read(_HEADER.size)
        size = os.fstat(file.fileno()).st_size
    if is_pickle_name(path) or is_pickle(start):
        raise pickle_error(path)
    config = _config(path, start)
    places = _places(config)
    total = places.pop("")
    if size != total:
        raise InputError(
            f"{path} is not a whole llama2.c checkpoint: it is {size} bytes long, and its header "
            f"asks for {total}",
            "Get the file again",
        )
    spec = load_tokenizer(tokenizer or _tokenizer_beside(path, config.vocab_size))
    if spec.vocab_size != config.vocab_size:
        fit_tokenizer(spec, config.vocab_size)
        raise InputError(
            f"The tokenizer has {spec.vocab_size} pieces and {path} {config.vocab_size} tokens",
            "Name the tokenizer that belongs to the model with --tokenizer",
        )
    shapes = tensor_shapes(config)
    readers = {name: _reader(path, config, name, places[name], shapes[name]) for name in shapes}
    return Checkpoint(config, LazyTensors(readers), spec, f"{model_name(path.stem)}, llama2.c")


def _config(path: Path, start: bytes) -> LlamaConfig:
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {what}, which cannot be read here", _REMEDY)
    if start.startswith(_MAGIC_LATER):
        raise InputError(
            f"{path} is a llama2.c file of version 1 or later, and only version 0 is supported",
            "Export the model again with `export.py --version 0`",
        )
    if len(start) != _HEADER.size:
        raise InputError(f"{path} is too short to be a checkpoint", _REMEDY)
    dim, ffn, layers, heads, kv_heads, vocab, seq_len = _HEADER.unpack(start)
    positive = (dim, ffn, layers, heads, kv_heads, abs(vocab), seq_len)
    if (
        not all(1 <= value <= _MOST for value in positive)
        or layers > 1000
        or dim % heads
        or dim // heads % 2
        or heads % kv_heads
    ):
        raise InputError(f"{path} does not begin with a llama2.c header", _REMEDY)
    return LlamaConfig(
        vocab_size=abs(vocab),
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim // heads,
        intermediate_size=ffn,
        max_position_embeddings=seq_len,
        rms_norm_eps=_EPS,
        rope_theta=_THETA,
        tie_word_embeddings=vocab > 0,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        add_bos_token=True,
        name=model_name(path.stem),
    )


def _places(config: LlamaConfig) -> dict[str, int]:
    """Where each tensor begins, bytes; the end of the file under the empty name."""
    shapes = tensor_shapes(config)
    names = [EMBED]
    for part in _ORDER:
        names += [layer_tensor(layer, part) for layer in range(config.num_hidden_layers)]
    places: dict[str, int] = {}
    at = _HEADER.size
    for name in [*names, FINAL_NORM]:
        places[name] = at
        at += 4 * math.prod(shapes[name])
    # The tables of cosines and sines, seq_len x head_dim / 2 each, that older programs read.
    at += 4 * config.max_position_embeddings * config.head_dim
    if not config.tie_word_embeddings:
        places[HEAD] = at
        at += 4 * math.prod(shapes[HEAD])
    places[""] = at
    return places


def _reader(
    path: Path, config: LlamaConfig, name: str, offset: int, shape: tuple[int, ...]
) -> Callable[[], FloatArray]:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return partial(_read_rotary, path, offset, shape, config.head_dim)
    return partial(read_floats, path, offset, shape, "F32")


def _read_rotary(path: Path, offset: int, shape: tuple[int, ...], head_dim: int) -> FloatArray:
    """Reads rows whose rotary pairs are neighbours, and parts the pairs' halves."""
    tensor = read_floats(path, offset, shape, "F32")
    for head in np.split(tensor, shape[0] // head_dim):
        head[:] = np.concatenate((head[0::2], head[1::2]))
    return tensor


def _tokenizer_beside(path: Path, vocab: int) -> Path:
    for name in (f"tok{vocab}.bin", "tokenizer.bin", "tokenizer.model"):
        if is_file(beside := path.with_name(name)):
            return beside
    raise InputError(
        f"There is no tokenizer beside {path}, neither tok{vocab}.bin nor tokenizer.bin",
        "Name it with --tokenizer",
    )
