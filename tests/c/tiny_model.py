"""A random model of any shape and its descriptor, written from docs/FORMAT.md alone."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model, in the descriptor's order."""

    vocab: int = 97
    hidden: int = 24
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    ffn: int = 40
    context: int = 48

    def words(self) -> tuple[int, ...]:
        return (
            self.vocab,
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.ffn,
            self.context,
        )


@dataclass(frozen=True)
class Tensor:
    """Integers, and the scale m * 2^e that makes them weights."""

    name: str
    data: NDArray[np.int8] | NDArray[np.int16]
    m: int
    e: int

    @property
    def weights(self) -> NDArray[np.float64]:
        return self.data.astype(np.float64) * math.ldexp(self.m, self.e)


def scale_parts(value: float) -> tuple[int, int]:
    """m and e of the scale m * 2^e nearest to a value, 2^23 <= m < 2^24."""
    fraction, exponent = math.frexp(value)
    m, e = round(math.ldexp(fraction, 24)), exponent - 24
    return (m, e) if m < 1 << 24 else (m // 2, e + 1)


@dataclass
class TinyModel:
    """A model, the bytes of its files and of its descriptor."""

    shape: Shape
    tensors: list[Tensor]
    bos: int = 1
    eos: int = 2
    add_bos: bool = True
    eps: float = 1e-5
    theta: float = 10000.0
    tied: bool = False
    tokenizer: bytes = b"TTOK" + bytes(60)
    files: list[tuple[str, bytes]] = field(init=False)

    def __post_init__(self) -> None:
        stored = self.tensors[:-1] if self.tied else self.tensors
        self.files = [(f"{t.name}.bin", t.data.astype(t.data.dtype).tobytes()) for t in stored]
        self.files.append(("tokenizer.bin", self.tokenizer))

    def descriptor(self) -> bytes:
        crcs: list[int] = []
        files = b""
        for name, data in self.files:
            files += struct.pack("<32s4I", name.encode(), len(data), len(crcs), zlib.crc32(data), 0)
            crcs += [zlib.crc32(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)]
        tensors = b""
        for index, tensor in enumerate(self.tensors):
            file = 0 if self.tied and index == len(self.tensors) - 1 else index
            dtype = {"int8": 1, "int16": 2}[tensor.data.dtype.name]
            rows, cols = tensor.data.shape
            tensors += struct.pack(
                "<HBBIIIIiII", file, dtype, 0, rows, cols, 0, tensor.m, tensor.e, 0, 0
            )
        d = self.shape.head_dim
        rope = [
            round(self.theta ** (-2 * i / d) / (2 * math.pi) * 2**32) % 2**32 for i in range(d // 2)
        ]
        eps_m, eps_e = scale_parts(self.eps)
        eps_m, eps_e = eps_m << 7, eps_e - 7
        if eps_e % 2:
            eps_m, eps_e = eps_m << 1, eps_e - 1
        attn_m, attn_e = scale_parts(math.log2(math.e) / math.sqrt(d))
        tail = b"".join(struct.pack("<I", v) for v in [*rope, *crcs])
        total = 160 + len(files) + len(tensors) + len(tail) + 4
        header = struct.pack(
            "<4sHHII8IiiIiIi4III32s32s",
            b"TLLM",
            1,
            160,
            total,
            int(self.add_bos),
            *self.shape.words(),
            self.bos,
            self.eos,
            eps_m,
            eps_e,
            attn_m,
            attn_e,
            len(self.files),
            len(self.tensors),
            len(rope),
            len(crcs),
            CHUNK,
            len(self.files) - 1,
            bytes(range(32)),
            b"tiny",
        )
        body = header + files + tensors + tail
        return body + struct.pack("<I", zlib.crc32(body))


def make_model(shape: Shape | None = None, *, seed: int = 1, tied: bool = False) -> TinyModel:
    """A model whose weights are random, of a size that keeps activations near 1."""
    s = shape or Shape()
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, cols: int) -> Tensor:
        data = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        return Tensor(name, data, *scale_parts(1.5 / (73 * math.sqrt(cols))))

    def norm(name: str) -> Tensor:
        data = rng.integers(12000, 32767, (1, s.hidden)).astype(np.int16)
        return Tensor(name, data, 1 << 23, -23 - 14)

    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    tensors = [matrix("embed_tokens", s.vocab, s.hidden)]
    for layer in range(s.layers):
        p = f"layer{layer:02}_" if s.layers > 1 else ""
        tensors += [
            norm(f"{p}norm1"),
            matrix(f"{p}q_proj", q, s.hidden),
            matrix(f"{p}k_proj", kv, s.hidden),
            matrix(f"{p}v_proj", kv, s.hidden),
            matrix(f"{p}o_proj", s.hidden, q),
            norm(f"{p}norm2"),
            matrix(f"{p}gate_proj", s.ffn, s.hidden),
            matrix(f"{p}up_proj", s.ffn, s.hidden),
            matrix(f"{p}down_proj", s.hidden, s.ffn),
        ]
    tensors.append(norm("final_norm"))
    tensors.append(tensors[0] if tied else matrix("lm_head", s.vocab, s.hidden))
    return TinyModel(s, tensors, tied=tied)


def float_logits(model: TinyModel, tokens: list[int]) -> NDArray[np.float64]:
    """Logits (tokens, vocab) of a plain Llama in float64, every position."""
    s, w = model.shape, [t.weights for t in model.tensors]
    n, d, half = len(tokens), s.head_dim, s.head_dim // 2

    def rms(x: NDArray[np.float64], g: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = x / np.sqrt((x * x).mean(-1, keepdims=True) + model.eps) * g
        return out

    angle = np.arange(n)[:, None] * model.theta ** (-2 * np.arange(half) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rope(x: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w[0][tokens]
    for layer in range(s.layers):
        norm1, wq, wk, wv, wo, norm2, gate, up, down = w[1 + 9 * layer : 10 + 9 * layer]
        h = rms(x, norm1)
        q = rope((h @ wq.T).reshape(n, s.heads, d))
        k = rope((h @ wk.T).reshape(n, s.kv_heads, d)).repeat(s.heads // s.kv_heads, 1)
        v = (h @ wv.T).reshape(n, s.kv_heads, d).repeat(s.heads // s.kv_heads, 1)
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(d)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", p, v).reshape(n, -1) @ wo.T
        h = rms(x, norm2)
        g = h @ gate.T
        x = x + (g / (1 + np.exp(-g)) * (h @ up.T)) @ down.T
    out: NDArray[np.float64] = rms(x, w[-2]) @ w[-1].T
    return out
