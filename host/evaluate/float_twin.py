"""A plain float forward pass of a Llama model, to measure the integer engine against.

It runs a checkpoint's own weights, or the weights that a package's integers stand for: "float
arithmetic on the same rounded weights", which tells what the rounding of the weights costs from what
the integer arithmetic does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from host.checkpoint import Checkpoint
    from host.package.reader import Package

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
        tensors: float32 arrays under Hugging Face names (``model.embed_tokens.weight``, ...,
            ``lm_head.weight`` also where it is tied), matrices as (out_features, in_features), the
            rotary pairs in the half-split layout. Each is read once, here.
    """

    def __init__(self, shape: Shape, tensors: Mapping[str, Floats]) -> None:
        self.shape = shape
        self._embed = _float32(tensors["model.embed_tokens.weight"])
        self._layers = [
            {name: _float32(tensors[f"model.layers.{i}.{name}.weight"]) for name in _LAYER_NAMES}
            for i in range(shape.layers)
        ]
        self._norm = _float32(tensors["model.norm.weight"])
        self._head = _float32(tensors["lm_head.weight"])

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
        names = [name for name, _ in _package_names(shape.layers)]
        tied = "model.embed_tokens.weight"
        tensors = {
            name: checkpoint.tensors[
                tied if name == "lm_head.weight" and config.tie_word_embeddings else name
            ]
            for name in names
        }
        return cls(shape, tensors)

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
        for index, (name, is_norm) in enumerate(_package_names(shape.layers)):
            scale = facts.tensors[index].scale
            values = package.tensor(index).astype(np.float32)
            if is_norm:
                values = values.reshape(-1)
            # Exact: eight or fifteen bits times a scale of 24 bits, rounded once.
            tensors[name] = values * np.float32(np.ldexp(float(scale.m), scale.e))
        return cls(shape, tensors)

    def logits(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> Floats:
        """Returns (n, vocab) float32 logits of a window of n tokens, which begins at position 0.

        Raises:
            ValueError: The window is empty or longer than the context.
        """
        return self.head(self.states(tokens))

    def head(self, states: Floats) -> Floats:
        """Returns (n, vocab) float32 logits of (n, hidden) final states, see `states`."""
        return states @ self._head.T

    def states(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> Floats:
        """Returns (n, hidden) float32: what the head is applied to, after the final norm."""
        ids = np.asarray(tokens, dtype=np.int64)
        if not 0 < len(ids) <= self.shape.context:
            raise ValueError(f"A window of {len(ids)} tokens, context {self.shape.context}")
        angles = np.arange(len(ids))[:, np.newaxis] * self.shape.frequencies
        turn = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        r = self._embed[ids]
        for layer in self._layers:
            x = _rms_norm(r, layer["input_layernorm"], self.shape.eps)
            r = r + self._attention(layer, x, turn)
            x = _rms_norm(r, layer["post_attention_layernorm"], self.shape.eps)
            gate = x @ layer["mlp.gate_proj"].T
            up = x @ layer["mlp.up_proj"].T
            r = r + (_silu(gate) * up) @ layer["mlp.down_proj"].T
        return _rms_norm(r, self._norm, self.shape.eps)

    def _attention(
        self, layer: Mapping[str, Floats], x: Floats, turn: tuple[Floats, Floats]
    ) -> Floats:
        shape, n = self.shape, len(x)
        q = (x @ layer["self_attn.q_proj"].T).reshape(n, shape.heads, shape.head_dim)
        k = (x @ layer["self_attn.k_proj"].T).reshape(n, shape.kv_heads, shape.head_dim)
        v = (x @ layer["self_attn.v_proj"].T).reshape(n, shape.kv_heads, shape.head_dim)
        q, k = _rotate(q, turn), _rotate(k, turn)
        hidden_future = np.triu(np.full((n, n), -np.inf, dtype=np.float32), 1)
        out = np.empty_like(q)
        for head in range(shape.heads):
            group = head // (shape.heads // shape.kv_heads)
            scores = q[:, head] @ k[:, group].T / np.float32(np.sqrt(shape.head_dim))
            scores += hidden_future
            scores -= scores.max(axis=1, keepdims=True)
            weights = np.exp(scores)
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, group]
        return out.reshape(n, -1) @ layer["self_attn.o_proj"].T


_LAYER_NAMES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _package_names(layers: int) -> list[tuple[str, bool]]:
    """Returns the Hugging Face name of each tensor in a package's order, and whether a norm's."""
    names = ["model.embed_tokens"]
    names += [f"model.layers.{i}.{name}" for i in range(layers) for name in _LAYER_NAMES]
    names += ["model.norm", "lm_head"]
    return [(f"{name}.weight", name.endswith("norm")) for name in names]


def _float32(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)


def _rms_norm(r: Floats, gain: Floats, eps: float) -> Floats:
    mean = np.mean(r * r, axis=1, keepdims=True)
    return r / np.sqrt(mean + np.float32(eps)) * gain


def _rotate(v: Floats, turn: tuple[Floats, Floats]) -> Floats:
    c, s = turn[0][:, np.newaxis], turn[1][:, np.newaxis]
    x, y = np.split(v, 2, axis=2)
    return np.concatenate([x * c - y * s, y * c + x * s], axis=2)


def _silu(v: Floats) -> Floats:
    # 1 / (1 + exp(-v)), written so that no exponential overflows.
    return v * (np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * v)))
