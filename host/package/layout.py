"""The names, places and shapes of a package's files (docs/FORMAT.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

CHUNK_BYTES = 4096
TOKENIZER = "tokenizer.bin"
CONFIG = "model_config.json"
SCALES = "quantization_scales.json"
DESCRIPTOR = "descriptor.bin"
MANIFEST = "manifest.json"
OUTSIDE_FINGERPRINT = (DESCRIPTOR, MANIFEST)

LAYER_PARTS = (
    "norm1",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "norm2",
    "gate_proj",
    "up_proj",
    "down_proj",
)
EMBED, FINAL_NORM, HEAD = "embed_tokens", "final_norm", "lm_head"
NORMS = frozenset({"norm1", "norm2", FINAL_NORM})


class DType(IntEnum):
    """How a tensor's elements are stored; the numbers are the descriptor's."""

    INT8 = 1
    INT16 = 2

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return int(self)

    @property
    def numpy(self) -> str:
        """The same for numpy, little-endian."""
        return "|i1" if self is DType.INT8 else "<i2"


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a Llama-family model.

    Attributes:
        vocab: Rows of the embedding.
        hidden: Elements of the residual stream.
        layers: Blocks of attention and feed-forward.
        heads: Query heads.
        kv_heads: Key and value heads; a divisor of `heads`.
        head_dim: Elements of a head.
        ffn: Elements between the feed-forward's matrices.
        context: Positions.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int


@dataclass(frozen=True)
class TensorPlace:
    """A tensor that every model of some dimensions has.

    Attributes:
        key: Its name, such as ``layer01_q_proj``.
        part: What it is in its layer, such as ``q_proj``.
        layer: The layer, -1 for those outside.
        file: The file that holds it.
        dtype: How it is stored.
        rows: Output features; 1 of a norm.
        cols: Input features.
    """

    key: str
    part: str
    layer: int
    file: str
    dtype: DType
    rows: int
    cols: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows * self.cols * self.dtype.itemsize


def tensor_count(layers: int) -> int:
    """Returns the number of tensors of a model."""
    return 3 + len(LAYER_PARTS) * layers


def tensor_places(dims: Dimensions, tied: bool) -> tuple[TensorPlace, ...]:
    """Returns a model's tensors in the descriptor's order.

    Args:
        dims: The model's sizes.
        tied: Whether the head is the embedding.
    """
    q, kv = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    shapes = {
        EMBED: (dims.vocab, dims.hidden),
        HEAD: (dims.vocab, dims.hidden),
        "q_proj": (q, dims.hidden),
        "k_proj": (kv, dims.hidden),
        "v_proj": (kv, dims.hidden),
        "o_proj": (dims.hidden, q),
        "gate_proj": (dims.ffn, dims.hidden),
        "up_proj": (dims.ffn, dims.hidden),
        "down_proj": (dims.hidden, dims.ffn),
    }

    def place(part: str, layer: int = -1) -> TensorPlace:
        key = part if layer < 0 else f"{layer_prefix(layer, dims.layers)}{part}"
        file = EMBED if tied and part == HEAD else key
        dtype = DType.INT16 if part in NORMS else DType.INT8
        rows, cols = shapes.get(part, (1, dims.hidden))
        return TensorPlace(key, part, layer, f"{file}.bin", dtype, rows, cols)

    layers = [place(part, layer) for layer in range(dims.layers) for part in LAYER_PARTS]
    return (place(EMBED), *layers, place(FINAL_NORM), place(HEAD))


def layer_prefix(layer: int, layers: int) -> str:
    """Returns what the names of a layer's tensors begin with; nothing in a one-layer model."""
    if layers == 1:
        return ""
    return f"layer{layer:0{3 if layers >= 100 else 2}}_"


def chunk_count(size: int) -> int:
    """Returns the number of CRC-32s of a file of so many bytes."""
    return -(-size // CHUNK_BYTES)
