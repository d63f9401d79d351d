"""The forward pass of docs/NUMERICS.md section 4, for batches of tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from host.reference.fixed import Ints, norm32
from host.reference.ops import (
    Block,
    Cached,
    add,
    attention,
    matvec,
    rms_norm,
    rope,
    swiglu,
)

if TYPE_CHECKING:
    from host.package import ModelFacts, Package, TensorEntry

Mantissas: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.int32]

_BATCH: Final = 256


class Stage(IntEnum):
    """The stages of a token's evaluation, in order."""

    EMBED = 0
    ATTN_NORM = 1
    Q = 2
    K = 3
    V = 4
    ATTN = 5
    ATTN_OUT = 6
    FFN_NORM = 7
    GATE = 8
    UP = 9
    ACT = 10
    FFN_OUT = 11
    FINAL_NORM = 12
    LOGITS = 13

    @property
    def label(self) -> str:
        """The name that the specification gives the stage."""
        return self.name.lower()

    @property
    def is_32_bit(self) -> bool:
        """Whether the stage reports int32 mantissas; the others report int16."""
        return self in _WIDE


_WIDE: Final = frozenset(
    {
        Stage.EMBED,
        Stage.ATTN_OUT,
        Stage.GATE,
        Stage.UP,
        Stage.FFN_OUT,
        Stage.LOGITS,
    }
)

Trace: TypeAlias = Callable[[Stage, int, int, Mantissas, int], None]
"""Called with stage, layer (0 for a stage of no layer), position, (n,) mantissas and exponent."""


@dataclass(frozen=True)
class Logits:
    """The head's output for one or more tokens: ``m[b, i] * 2^e[b]``."""

    m: npt.NDArray[np.int32]
    """(B, vocab) mantissas, |m| < 2^30."""
    e: Ints
    """(B,) exponents."""

    def values(self) -> npt.NDArray[np.float64]:
        """Returns the logits as (B, vocab) float64."""
        return np.ldexp(self.m.astype(np.float64), self.e[:, np.newaxis])


def stage_crc(mantissas: Mantissas, exponent: int) -> int:
    """Returns the CRC-32 of a stage: its mantissas, then its exponent as int32, little-endian."""
    little = mantissas.astype(mantissas.dtype.newbyteorder("<"))
    tail = exponent.to_bytes(4, "little", signed=True)
    return zlib.crc32(tail, zlib.crc32(little.tobytes()))


@dataclass(frozen=True)
class _Matrix:
    weights: npt.NDArray[np.int8]
    m: int
    e: int

    def __call__(self, x: Block) -> Block:
        return matvec(self.weights, self.m, self.e, x)


@dataclass(frozen=True)
class _Norm:
    gain: npt.NDArray[np.int16]
    e: int
    eps: tuple[int, int]

    def __call__(self, r: Block) -> Block:
        return rms_norm(r, self.gain, self.e, self.eps)


@dataclass(frozen=True)
class _Layer:
    norm1: _Norm
    q_proj: _Matrix
    k_proj: _Matrix
    v_proj: _Matrix
    o_proj: _Matrix
    norm2: _Norm
    gate_proj: _Matrix
    up_proj: _Matrix
    down_proj: _Matrix


class _Store:
    """Mantissas and exponents of one layer's keys or values, for the whole context."""

    def __init__(self, context: int, groups: int, d: int) -> None:
        self.m = np.zeros((context, groups, d), dtype=np.int16)
        self.e = np.zeros(context, dtype=np.int64)

    def put(self, first: int, block: Block) -> None:
        rows = slice(first, first + len(block.m))
        self.m[rows] = block.m.reshape(-1, *self.m.shape[1:])
        self.e[rows] = block.e

    def first(self, count: int) -> Cached:
        return Cached(self.m[:count].astype(np.int64), self.e[:count])


class ReferenceModel:
    """Evaluates tokens as the engine does, bit for bit.

    Args:
        package: An opened package; its tensors stay memory-mapped.

    Attributes:
        facts: What the package says of the model.
        n_past: Positions that are evaluated and held in the KV cache.
    """

    def __init__(self, package: Package) -> None:
        self.facts: ModelFacts = package.model
        self.n_past = 0
        facts = self.facts
        eps = (facts.eps_m, facts.eps_e)
        entries = iter(enumerate(facts.tensors))

        def matrix() -> _Matrix:
            index, entry = next(entries)
            weights = cast("npt.NDArray[np.int8]", package.tensor(index))
            return _Matrix(weights, *_scale(entry))

        def norm() -> _Norm:
            index, entry = next(entries)
            m, e = _scale(entry)
            if m != 1 << 23:
                raise ValueError(f"A norm's scale is {m} * 2^{e}, not a power of two")
            gain = cast("npt.NDArray[np.int16]", package.tensor(index))
            return _Norm(gain, e + 23, eps)

        self._embed = matrix()
        self._layers = [
            _Layer(
                norm(), matrix(), matrix(), matrix(), matrix(), norm(), matrix(), matrix(), matrix()
            )
            for _ in range(facts.layers)
        ]
        self._final_norm = norm()
        self._head = matrix()
        shape = (facts.context, facts.kv_heads, facts.head_dim)
        self._keys = [_Store(*shape) for _ in range(facts.layers)]
        self._values = [_Store(*shape) for _ in range(facts.layers)]

    def rewind(self, n_past: int) -> None:
        """Forgets the positions from n_past on.

        Raises:
            ValueError: n_past is negative or beyond what is held.
        """
        if not 0 <= n_past <= self.n_past:
            raise ValueError(f"Cannot rewind to {n_past}: {self.n_past} positions are held")
        self.n_past = n_past

    def feed(
        self,
        tokens: Sequence[int] | npt.NDArray[np.integer],
        *,
        logits: Literal["last", "all", "none"] = "last",
        trace: Trace | None = None,
    ) -> Logits | None:
        """Evaluates tokens at the positions from n_past on.

        Args:
            tokens: Ids, each below the vocabulary's size.
            logits: Which tokens' logits to compute: of none, the last (1, vocab) or all (B, vocab).
            trace: Called with each stage of each token; FINAL_NORM and LOGITS only for the tokens
                whose logits are computed. In a batch, a stage is reported for all its tokens before
                the next stage is.

        Returns:
            The logits; None where none are asked for.

        Raises:
            ValueError: No token, one outside the vocabulary, or more than the context holds.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError("feed wants a list of at least one token")
        if ids.min() < 0 or ids.max() >= self.facts.vocab:
            raise ValueError(f"A token is outside the vocabulary of {self.facts.vocab}")
        if self.n_past + len(ids) > self.facts.context:
            raise ValueError(f"The tokens exceed the context of {self.facts.context}")
        parts: list[Block] = []
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            first = self.n_past
            r = self._run_layers(batch, first, trace)
            self.n_past += len(batch)
            if logits == "all":
                parts.append(self._run_head(r, first, trace))
            elif logits == "last" and start + _BATCH >= len(ids):
                last = Block(r.m[-1:], r.e[-1:])
                parts.append(self._run_head(last, self.n_past - 1, trace))
        if not parts:
            return None
        m = np.concatenate([part.m.astype(np.int32) for part in parts])
        return Logits(m, np.concatenate([part.e for part in parts]))

    def _run_layers(self, ids: Ints, first: int, trace: Trace | None) -> Block:
        facts = self.facts

        def report(stage: Stage, layer: int, block: Block) -> Block:
            return _report(trace, stage, layer, first, block)

        rows = self._embed.weights[ids].astype(np.int64) * self._embed.m
        r = Block(*norm32(rows, np.full(len(ids), self._embed.e, dtype=np.int64)))
        report(Stage.EMBED, 0, r)
        held = first + len(ids)
        for index, layer in enumerate(self._layers):
            x = report(Stage.ATTN_NORM, index, layer.norm1(r))
            q = rope(layer.q_proj(x).norm32(), first, facts.rope_freq).to16()
            k = rope(layer.k_proj(x).norm32(), first, facts.rope_freq).to16()
            v = layer.v_proj(x).norm32().to16()
            report(Stage.Q, index, q)
            self._keys[index].put(first, report(Stage.K, index, k))
            self._values[index].put(first, report(Stage.V, index, v))
            x = attention(
                q,
                self._keys[index].first(held),
                self._values[index].first(held),
                (facts.attn_scale.m, facts.attn_scale.e),
            ).to16()
            report(Stage.ATTN, index, x)
            r = report(Stage.ATTN_OUT, index, add(r, layer.o_proj(x).norm32()))
            x = report(Stage.FFN_NORM, index, layer.norm2(r))
            g = report(Stage.GATE, index, layer.gate_proj(x).norm32())
            u = report(Stage.UP, index, layer.up_proj(x).norm32())
            x = report(Stage.ACT, index, swiglu(g, u))
            r = report(Stage.FFN_OUT, index, add(r, layer.down_proj(x).norm32()))
        return r

    def _run_head(self, r: Block, first: int, trace: Trace | None) -> Block:
        x = _report(trace, Stage.FINAL_NORM, 0, first, self._final_norm(r))
        return _report(trace, Stage.LOGITS, 0, first, self._head(x))


def _report(trace: Trace | None, stage: Stage, layer: int, first: int, block: Block) -> Block:
    if trace is not None:
        mantissas = block.m.astype(np.int32 if stage.is_32_bit else np.int16)
        for row, exponent in enumerate(block.e.tolist()):
            trace(stage, layer, first + row, mantissas[row], exponent)
    return block


def _scale(entry: TensorEntry) -> tuple[int, int]:
    return entry.scale.m, entry.scale.e
