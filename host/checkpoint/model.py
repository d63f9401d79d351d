"""What every reader of checkpoints returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from host.errors import InputError
from host.tokenizer import TokenizerSpec

FloatArray = NDArray[np.float32]

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER_TENSORS = {
    "norm1": "input_layernorm.weight",
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "norm2": "post_attention_layernorm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
}

_BLOCK = 1 << 20


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama-family model; names and meaning are those of Hugging Face's config.json.

    Attributes:
        vocab_size: Rows of the embedding.
        hidden_size: Elements of the residual stream.
        num_hidden_layers: Number of layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Elements of a head.
        intermediate_size: Elements between the feed-forward's matrices.
        max_position_embeddings: Positions.
        rms_norm_eps: RMSNorm's epsilon.
        rope_theta: Base of the rotary embedding.
        tie_word_embeddings: Whether the head is the embedding.
        bos_token_id: Token that begins a text, -1 for none.
        eos_token_id: Token that ends one, -1 for none.
        add_bos_token: Whether a text is fed with BOS in front.
        name: What people call the model.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_id: int
    add_bos_token: bool
    name: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A float model, its weights read one tensor at a time.

    Attributes:
        config: The model's sizes and constants.
        tensors: Float32 by Hugging Face's names; matrices are (out_features, in_features), query
            and key in the half-split RoPE layout. Each look-up reads the tensor anew and raises
            `InputError` where it has a NaN or an infinity. A tied head is not among them.
        tokenizer: As many pieces as the model has rows in its embedding.
        source: What it was read from, for people.
    """

    config: LlamaConfig
    tensors: Mapping[str, FloatArray]
    tokenizer: TokenizerSpec
    source: str


class LazyTensors(Mapping[str, FloatArray]):
    """Tensors that are read when they are looked up, and checked then.

    Args:
        readers: What reads each.
    """

    def __init__(self, readers: Mapping[str, Callable[[], FloatArray]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> FloatArray:
        tensor = self._readers[name]()
        refuse_not_finite(tensor, name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def layer_tensor(layer: int, part: str) -> str:
    """Returns the name of a layer's tensor, of which `LAYER_TENSORS` lists the parts."""
    return f"model.layers.{layer}.{LAYER_TENSORS[part]}"


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the tensors that a model has, and their shapes."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    parts: dict[str, tuple[int, ...]] = {
        "norm1": (hidden,),
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "norm2": (hidden,),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes |= {layer_tensor(layer, part): shape for part, shape in parts.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def refuse_not_finite(tensor: FloatArray, name: str) -> None:
    """Checks a tensor's values, with no temporary array of its size.

    Raises:
        InputError: One is a NaN or an infinity.
    """
    flat = tensor.reshape(-1)
    for at in range(0, flat.size, _BLOCK):
        block = flat[at : at + _BLOCK]
        if not np.isfinite(block).all():
            raise InputError(
                f"The tensor {name} has a NaN or an infinity among its weights",
                "Get the checkpoint again; if it was trained so, it cannot be used",
            )


def model_name(text: str) -> str:
    """Returns a name of at most 31 letters, digits, dots, dashes and underscores."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)
    return kept.lstrip(".")[:31] or "model"
