"""A plain float forward pass of a Llama model, to measure the integer engine against.

It runs a checkpoint's own weights, or the weights that a package's integers stand for. The latter,
float arithmetic on the same rounded weights, tells what the rounding of the weights costs from what
the integer arithmetic does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from host.checkpoint.model import EMBED, FINAL_NORM, HEAD, LAYER_TENSORS, layer_tensor
from host.package import layout
from host.quantize.convert import checkpoint_name

if TYPE_CHECKING:
    from host.checkpoint import Checkpoint
    from host.package import Package

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The facts of a Llama model that its arithmetic needs.

    Attributes:
        layers: Number of decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads; each serves heads / kv_heads query heads.
        head_dim: Elements of a head.
        context: The most positions of a window.
        eps: What RMS normalisation adds to the mean square.
        frequencies: (head_dim / 2,) radians a position turns each rotary pair.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float
    frequencies: npt.NDArray[np.float64]


class FloatModel:
    """Evaluates windows of tokens in float32.

    Args:
        shape: The model's facts.
        tensors: float32 arrays by Hugging Face's names, as a `Checkpoint` has them: matrices as
            (out_features, in_features), the rotary pairs in the half-split layout. Each is read
            once, here. Without a head, it is the embedding.
    """

    def __init__(self, shape: Shape, tensors: Mapping[str, Floats]) -> None:
        self.shape = shape
        self._embed = _float32(tensors[EMBED])
        self._layers = [
            {part: _float32(tensors[layer_tensor(i, part)]) for part in LAYER_TENSORS}
            for i in range(shape.layers)
        ]
        self._norm = _float32(tensors[FINAL_NORM])
        self._head = _float32(tensors[HEAD]) if HEAD in tensors else self._embed

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> FloatModel:
        """Returns the model of a checkpoint's own weights."""
        config = checkpoint.config
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
        shape = Shape(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            context=config.max_position_embeddings,
            eps=config.rms_norm_eps,
            frequencies=float(config.rope_theta) ** -exponents,
        )
        return cls(shape, checkpoint.tensors)

    @classmethod
    def from_package(cls, package: Package) -> FloatModel:
        """Returns the model of the weights that a package's integers stand for."""
        facts = package.model
        shape = Shape(
            layers=facts.layers,
            heads=facts.heads,
            kv_heads=facts.kv_heads,
            head_dim=facts.head_dim,
            context=facts.context,
            eps=float(np.ldexp(float(facts.eps_m), facts.eps_e)),
            frequencies=facts.rope_freq.astype(np.float64) * (2 * np.pi / 2**32),
        )
        tensors: dict[str, Floats] = {}
        for index, place in enumerate(facts.places):
            if place.part == layout.HEAD and facts.tied:
                continue
            # A float32 scale times an integer of at most 15 bits, rounded once.
            scale = np.float32(facts.tensors[index].scale.value)
            tensors[checkpoint_name(place)] = package.tensor(index).astype(np.float32) * scale
        return cls(shape, tensors)

    def logits(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> Floats:
        """Returns (n, vocab) float32 logits of a window of n tokens, which begins at position 0.

        Raises:
            ValueError: The window is empty or longer than the context.
        """
        return self.head(self.states(tokens))

    def head(self, states: Floats) -> Floats:
        """Returns (n, vocab) float32 logits of (n, hidden) final states, see `states`."""
        return _times(states, self._head)

    def states(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> Floats:
        """Returns (n, hidden) float32: what the head is applied to, after the final norm."""
        ids = np.asarray(tokens, dtype=np.int64)
        if not 0 < len(ids) <= self.shape.context:
            raise ValueError(f"A window of {len(ids)} tokens, context {self.shape.context}")
        angles = np.arange(len(ids))[:, np.newaxis] * self.shape.frequencies
        turn = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        r = self._embed[ids]
        for layer in self._layers:
            x = _rms_norm(r, layer["norm1"], self.shape.eps)
            r = r + self._attention(layer, x, turn)
            x = _rms_norm(r, layer["norm2"], self.shape.eps)
            x = _silu(_times(x, layer["gate_proj"])) * _times(x, layer["up_proj"])
            r = r + _times(x, layer["down_proj"])
        return _rms_norm(r, self._norm, self.shape.eps)

    def _attention(
        self, layer: Mapping[str, Floats], x: Floats, turn: tuple[Floats, Floats]
    ) -> Floats:
        shape, n = self.shape, len(x)
        q = _times(x, layer["q_proj"]).reshape(n, shape.heads, shape.head_dim)
        k = _times(x, layer["k_proj"]).reshape(n, shape.kv_heads, shape.head_dim)
        v = _times(x, layer["v_proj"]).reshape(n, shape.kv_heads, shape.head_dim)
        q, k = _rotate(q, turn), _rotate(k, turn)
        future = np.triu(np.full((n, n), -np.inf, dtype=np.float32), 1)
        out = np.empty_like(q)
        for head in range(shape.heads):
            group = head // (shape.heads // shape.kv_heads)
            scores = q[:, head] @ k[:, group].T / np.float32(np.sqrt(shape.head_dim))
            scores += future
            scores -= scores.max(axis=1, keepdims=True)
            weights = np.exp(scores)
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, group]
        return _times(out.reshape(n, -1), layer["o_proj"])


def _float32(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)


def _times(x: Floats, weights: Floats) -> Floats:
    product: Floats = x @ weights.T
    return product


def _rms_norm(r: Floats, gain: Floats, eps: float) -> Floats:
    mean: Floats = np.mean(r * r, axis=1, keepdims=True)
    normal: Floats = r / np.sqrt(mean + np.float32(eps)) * gain
    return normal


def _rotate(v: Floats, turn: tuple[Floats, Floats]) -> Floats:
    c, s = turn[0][:, np.newaxis], turn[1][:, np.newaxis]
    x, y = np.split(v, 2, axis=2)
    return np.concatenate([x * c - y * s, y * c + x * s], axis=2)


def _silu(v: Floats) -> Floats:
    # 1 / (1 + exp(-v)), written so that no exponential overflows.
    half = np.float32(0.5)
    activated: Floats = v * (half + half * np.tanh(half * v))
    return activated
