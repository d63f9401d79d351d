"""The facts of a packaged model, and the checks on them that the engine makes too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from host.errors import InputError
from host.package.layout import (
    TOKENIZER,
    Dimensions,
    DType,
    TensorPlace,
    chunk_count,
    tensor_count,
    tensor_places,
)

MAX_VOCAB = 131072
MAX_HIDDEN = 32768
MAX_COLUMNS = 65536
MAX_HEAD_DIM = 256
MAX_CONTEXT = 65535
MAX_LAYERS = 1000
MAX_FILE_BYTES = 0xFFFFFFFF
MAX_NAME_BYTES = 31
MAX_EXPONENT = 200
NO_TOKEN = -1

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}", re.ASCII)


@dataclass(frozen=True)
class Scale:
    """A positive real m * 2^e with 2^23 <= m < 2^24: exactly a normal float32.

    Attributes:
        m: Mantissa, 24 bits.
        e: Exponent.
    """

    m: int
    e: int

    @classmethod
    def nearest(cls, value: Fraction | float) -> Scale:
        """Returns the scale nearest to a positive value, ties to even."""
        exact = Fraction(value)
        if exact <= 0:
            raise ValueError(f"{value} is no scale")
        e = exact.numerator.bit_length() - exact.denominator.bit_length() - 24
        while exact / _power(e) >= 1 << 24:
            e += 1
        m = round(exact / _power(e))
        return cls(m, e) if m < 1 << 24 else cls(m >> 1, e + 1)

    @classmethod
    def power_of_two(cls, exponent: int) -> Scale:
        """Returns the scale 2^exponent."""
        return cls(1 << 23, exponent - 23)

    @property
    def value(self) -> float:
        """The scale as a float, exactly."""
        return math.ldexp(self.m, self.e)


@dataclass(frozen=True)
class FileEntry:
    """One file as the descriptor lists it.

    Attributes:
        name: File name.
        size: Bytes.
        first_crc: Index of its first chunk's CRC-32 in the model's list.
        crc32: Of the whole file.
    """

    name: str
    size: int
    first_crc: int
    crc32: int


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the descriptor lists it.

    Attributes:
        file: Index of its file.
        dtype: How its elements are stored.
        rows: Output features; 1 of a norm.
        cols: Input features.
        offset: Where it begins in the file, bytes.
        scale: What an element of 1 stands for.
    """

    file: int
    dtype: DType
    rows: int
    cols: int
    offset: int
    scale: Scale


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """Everything about a packaged model but its weights; `struct tllm_model` of the engine.

    Attributes:
        name: What people call the model, at most 31 bytes of UTF-8.
        fingerprint: SHA-256 of the package, 32 bytes.
        vocab: Rows of the embedding.
        hidden: Elements of the residual stream.
        layers: Number of layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Elements of a head.
        ffn: Elements between the feed-forward's matrices.
        context: Positions.
        bos: Token that begins a text, -1 for none.
        eos: Token that ends one, -1 for none.
        add_bos: Whether a text is fed with `bos` in front.
        eps_m: RMSNorm's epsilon is eps_m * 2^eps_e.
        eps_e: See `eps_m`.
        attn_scale: log2(e) / sqrt(head_dim).
        files: The tensors' files in the order of the tensors, then the tokenizer's.
        tensors: Embedding, nine a layer, final norm, head.
        rope_freq: uint32 (head_dim / 2): turns a position, as a fraction of 2^32.
        crcs: uint32: CRC-32 of every chunk of every file.
    """

    name: str
    fingerprint: bytes
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    bos: int
    eos: int
    add_bos: bool
    eps_m: int
    eps_e: int
    attn_scale: Scale
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    rope_freq: NDArray[np.uint32]
    crcs: NDArray[np.uint32]

    @property
    def dimensions(self) -> Dimensions:
        """The sizes alone."""
        return Dimensions(
            self.vocab,
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.ffn,
            self.context,
        )

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.tensors[-1].file == self.tensors[0].file

    @property
    def tokenizer_file(self) -> int:
        """Index of the tokenizer's file."""
        return len(self.files) - 1

    @property
    def places(self) -> tuple[TensorPlace, ...]:
        """The tensors' names and shapes, in the order of `tensors`."""
        return tensor_places(self.dimensions, self.tied)


def check_dimensions(dims: Dimensions) -> None:
    """Checks a model's sizes against what docs/NUMERICS.md proves its bounds for.

    Raises:
        InputError: One is out of range; the message names it.
    """
    limits = {
        "vocabulary": (dims.vocab, MAX_VOCAB),
        "hidden size": (dims.hidden, MAX_HIDDEN),
        "number of layers": (dims.layers, MAX_LAYERS),
        "number of heads": (dims.heads, MAX_COLUMNS),
        "number of key and value heads": (dims.kv_heads, dims.heads),
        "head size": (dims.head_dim, MAX_HEAD_DIM),
        "feed-forward size": (dims.ffn, MAX_COLUMNS),
        "context": (dims.context, MAX_CONTEXT),
        "size of all heads": (dims.heads * dims.head_dim, MAX_COLUMNS),
    }
    for what, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise _unfit(f"its {what} is {value}, and 1 to {most} is supported")
    if dims.head_dim % 2:
        raise _unfit(f"its head size is {dims.head_dim}, and an even one is wanted")
    if dims.heads % dims.kv_heads:
        raise _unfit(f"its {dims.heads} heads cannot share {dims.kv_heads} key and value heads")
    for place in tensor_places(dims, tied=False):
        if place.size > MAX_FILE_BYTES:
            raise _unfit(f"its {place.key} would be a file of {place.size} bytes, beyond 4 GB")


def check_facts(model: ModelFacts) -> None:
    """Makes every check of docs/FORMAT.md on a model's facts.

    Raises:
        InputError: One fails; the message says which.
    """
    check_dimensions(model.dimensions)
    for reason in _faults(model):
        raise InputError(
            f"The model {shown_name(model.name)} is not valid: {reason}", "Make the package again"
        )


def is_file_name(name: str) -> bool:
    """Returns whether the format allows a file name."""
    return _FILE_NAME.fullmatch(name) is not None


def is_scale(scale: Scale) -> bool:
    """Returns whether mantissa and exponent are in range."""
    return 1 << 23 <= scale.m < 1 << 24 and abs(scale.e) <= MAX_EXPONENT


def shown_name(name: str) -> str:
    """Returns a name that may come from anywhere, fit for a terminal."""
    return name if name.isprintable() and name else ascii(name)


def _faults(model: ModelFacts) -> Iterator[str]:
    if not model.name.isprintable() or len(model.name.encode()) > MAX_NAME_BYTES:
        yield f"its name is not {MAX_NAME_BYTES} bytes of printable text"
    if len(model.fingerprint) != 32:
        yield "its fingerprint is not 32 bytes long"
    for role, token in (("BOS", model.bos), ("EOS", model.eos)):
        if not NO_TOKEN <= token < model.vocab:
            yield f"its {role} token {token} is not in the vocabulary"
    if model.add_bos and model.bos == NO_TOKEN:
        yield "it begins texts with a BOS token that it does not have"
    if not is_scale(model.attn_scale):
        yield "the scale of its attention is out of range"
    if not (model.eps_m == 0 or 1 << 30 <= model.eps_m < 1 << 32):
        yield "its epsilon is out of range"
    if model.eps_e % 2 or abs(model.eps_e) > MAX_EXPONENT:
        yield "its epsilon's exponent is out of range"
    if len(model.rope_freq) != model.head_dim // 2:
        yield "it has not one rotary frequency for each pair of a head's elements"
    if len(model.tensors) != tensor_count(model.layers):
        yield f"it has {len(model.tensors)} tensors, not {tensor_count(model.layers)}"
        return
    yield from _file_faults(model)
    yield from _tensor_faults(model)


def _file_faults(model: ModelFacts) -> Iterator[str]:
    names = [file.name for file in model.files]
    if len(set(names)) != len(names):
        yield "two of its files have the same name"
    first = 0
    for file in model.files:
        if not is_file_name(file.name):
            yield f"{file.name!a} is no file name"
        if not 1 <= file.size <= MAX_FILE_BYTES:
            yield f"{file.name} has {file.size} bytes"
        if file.first_crc != first:
            yield f"the chunks of {file.name} do not follow those before"
        first += chunk_count(file.size)
    if first != len(model.crcs):
        yield f"it has {len(model.crcs)} checksums of chunks, not {first}"


def _tensor_faults(model: ModelFacts) -> Iterator[str]:
    for tensor in model.tensors:
        if tensor.file >= len(model.files):
            yield f"a tensor is in file {tensor.file} of {len(model.files)}"
            return
    for place, tensor in zip(model.places, model.tensors, strict=True):
        if (tensor.rows, tensor.cols, tensor.dtype) != (place.rows, place.cols, place.dtype):
            yield f"{place.key} has not the shape or type that its place asks for"
        if tensor.offset + place.size > model.files[tensor.file].size:
            yield f"{place.key} reaches beyond the end of its file"
        if not is_scale(tensor.scale):
            yield f"the scale of {place.key} is out of range"
        if tensor.dtype is DType.INT16 and tensor.scale.m != 1 << 23:
            yield f"the scale of {place.key} is no power of two"
    expected = [*dict.fromkeys(place.file for place in model.places), TOKENIZER]
    if [file.name for file in model.files] != expected:
        yield "its files are not those of its tensors and the tokenizer, in their order"
    for place, tensor in zip(model.places, model.tensors, strict=True):
        if model.files[tensor.file].name != place.file:
            yield f"{place.key} is not in {place.file}"


def _unfit(reason: str) -> InputError:
    return InputError(f"The model is beyond this engine: {reason}", "Use another model")


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent
