"""Packages of random tensors, everyday and extreme ones, made by the project's own writer."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.package import DType, Package, PackageConfig, PackageWriter, Scale
from host.package.layout import HEAD, TensorPlace

WEIGHTS_AT_MOST = 200_000
# Around the blocks of 512 columns, the shift that begins at 257, and windows of 4,096 bytes.
HIDDEN = (1, 2, 7, 24, 33, 64, 65, 130, 256, 257, 513)
FFN = (1, 9, 40, 65, 172, 512, 1025, 4097, 9000)
VOCAB = (1, 2, 3, 50, 97, 256, 300, 1500, 5000)
EPSILON = (0.0, 2.0**-130, 1e-12, 1e-6, 1e-5, 1e-5, 1.0)
THETA = (1.0, 500.0, 1e4, 1e4, 5e5, 1e15)
MATRICES = (
    *("uniform",) * 6,
    *("saturated", "constant", "sparse", "zero", "small", "one column", "one row"),
)
GAINS = (*("usual",) * 6, "saturated", "zero", "one", "small")


def random_package(seed: int, folder: Path) -> Package:
    """Writes a package into an empty folder; a seed always gives the same one."""
    rng, data = random.Random(seed), np.random.default_rng(seed)
    config = _config(rng, seed)
    writer = PackageWriter(folder, config)
    wild = rng.random() < 0.5
    embedding: tuple[NDArray[np.int8], Scale] | None = None
    for place in writer.places:
        if place.dtype is DType.INT16:
            writer.add_tensor(place, *_norm(rng, data, place, wild), None, 0.0)
            continue
        tied = place.part == HEAD and config.tie_word_embeddings
        matrix = embedding if tied and embedding else _matrix(rng, data, place, wild)
        embedding = embedding or matrix
        writer.add_tensor(place, *matrix, None, 0.0)
    writer.finish("random", b"the engine alone reads no tokenizer")
    return Package.open(folder)


def _config(rng: random.Random, seed: int) -> PackageConfig:
    while True:
        groups = rng.choice((1, 1, 2, 3))
        config = PackageConfig(
            name=f"random {seed}",
            vocab_size=rng.choice(VOCAB),
            hidden_size=rng.choice(HIDDEN),
            num_hidden_layers=rng.choice((1, 1, 1, 2, 2, 3, 4)),
            num_attention_heads=groups * rng.choice((1, 1, 2, 3, 4)),
            num_key_value_heads=groups,
            head_dim=rng.choice((2, 4, 6, 10, 16, 34, 64, 256)),
            intermediate_size=rng.choice(FFN),
            max_position_embeddings=rng.choice((1, 2, 5, 16, 33, 40, 90)),
            rms_norm_eps=rng.choice(EPSILON),
            rope_theta=rng.choice(THETA),
            tie_word_embeddings=rng.random() < 0.3,
            bos_token_id=-1,
            eos_token_id=-1,
            add_bos_token=False,
            source="random numbers",
        )
        d = config.dimensions
        attention = 2 * d.hidden * (d.heads + d.kv_heads) * d.head_dim
        ffn = 3 * d.hidden * d.ffn
        if 2 * d.vocab * d.hidden + d.layers * (attention + ffn) <= WEIGHTS_AT_MOST:
            break
    bos, eos = (rng.randrange(d.vocab) if rng.random() < 0.8 else -1 for _ in range(2))
    add_bos = bos >= 0 and rng.random() < 0.5
    return replace(config, bos_token_id=bos, eos_token_id=eos, add_bos_token=add_bos)


def _matrix(
    rng: random.Random, data: np.random.Generator, place: TensorPlace, wild: bool
) -> tuple[NDArray[np.int8], Scale]:
    shape = (place.rows, place.cols)
    kind = rng.choice(MATRICES) if wild else "uniform"
    values = data.integers(-127, 128, shape).astype(np.int8)
    if kind == "saturated":
        values = data.choice(np.array([-128, -127, 127], np.int8), shape)
    elif kind == "constant":
        values[:] = rng.choice((-128, -127, 127, 1))
    elif kind == "sparse":
        values[data.random(shape) < 0.95] = 0
    elif kind == "zero":
        values[:] = 0
    elif kind == "small":
        values = data.integers(-1, 2, shape).astype(np.int8)
    elif kind == "one column":  # a dimension that dwarfs the others, as an attention sink's does
        values = data.integers(-1, 2, shape).astype(np.int8)
        values[:, rng.randrange(place.cols)] = 127
    elif kind == "one row":
        values[np.arange(place.rows) != rng.randrange(place.rows)] //= 100
    usual = Scale.nearest(1.5 / (73 * math.sqrt(place.cols)))
    return values, Scale(data.integers(1 << 23, 1 << 24).item(), _exponent(rng, usual.e, wild))


def _norm(
    rng: random.Random, data: np.random.Generator, place: TensorPlace, wild: bool
) -> tuple[NDArray[np.int16], Scale]:
    kind = rng.choice(GAINS) if wild else "usual"
    values = data.integers(12000, 32767, place.cols).astype(np.int16)
    if kind == "saturated":
        values = data.choice(np.array([-32768, -32767, 32767], np.int16), place.cols)
    elif kind == "zero":
        values[:] = 0
    elif kind == "one":
        values[:] = 0
        values[rng.randrange(place.cols)] = rng.choice((-32767, 32767))
    elif kind == "small":
        values = data.integers(-2, 3, place.cols).astype(np.int16)
    return values, Scale(1 << 23, _exponent(rng, -37, wild))


def _exponent(rng: random.Random, usual: int, wild: bool) -> int:
    """One near the usual, or, in wild models, far away or at the format's ends."""
    near = usual + rng.randint(-2, 3)
    if not wild or rng.random() < 0.6:
        return near
    return rng.choice((-200, 200, usual + rng.randint(-60, 60), usual + rng.randint(-15, 15)))
