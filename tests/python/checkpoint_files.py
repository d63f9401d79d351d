"""Small random checkpoints in each of the formats, written without the code under test."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = dict[str, NDArray[Any]]
LAYER = "model.layers.{}."


@dataclass(frozen=True)
class Shape:
    """Sizes by the names of config.json."""

    vocab_size: int = 300
    hidden_size: int = 24
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 6
    intermediate_size: int = 40
    max_position_embeddings: int = 32
    tie_word_embeddings: bool = False


SMALL = Shape()
TIED = Shape(tie_word_embeddings=True, num_hidden_layers=1)


def random_tensors(shape: Shape, seed: int = 1) -> Tensors:
    """Float32 by Hugging Face's names, norms near 1."""
    rng = np.random.default_rng(seed)
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    q = shape.num_attention_heads * shape.head_dim
    kv = shape.num_key_value_heads * shape.head_dim

    def matrix(*size: int) -> NDArray[np.float32]:
        return (rng.standard_normal(size) / 8).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return 1 + matrix(hidden)

    tensors: Tensors = {"model.embed_tokens.weight": matrix(shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        prefix = LAYER.format(layer)
        tensors |= {
            f"{prefix}input_layernorm.weight": norm(),
            f"{prefix}self_attn.q_proj.weight": matrix(q, hidden),
            f"{prefix}self_attn.k_proj.weight": matrix(kv, hidden),
            f"{prefix}self_attn.v_proj.weight": matrix(kv, hidden),
            f"{prefix}self_attn.o_proj.weight": matrix(hidden, q),
            f"{prefix}post_attention_layernorm.weight": norm(),
            f"{prefix}mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.up_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.down_proj.weight": matrix(hidden, ffn),
        }
    tensors["model.norm.weight"] = norm()
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = matrix(shape.vocab_size, hidden)
    return tensors


def config_of(shape: Shape, **changes: object) -> dict[str, object]:
    """What config.json holds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        **asdict(shape),
        **changes,
    }


def tokenizer_bin(vocab: int) -> bytes:
    """A llama2.c tokenizer whose normal pieces are CJK characters, which nothing merges into."""
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    texts += [b"<0x%02X>" % value for value in range(256)]
    texts += [chr(0x20000 + i).encode() for i in range(vocab - len(texts))]
    entries = (struct.pack("<fi", -float(i), len(text)) + text for i, text in enumerate(texts))
    return struct.pack("<i", max(map(len, texts))) + b"".join(entries)


def save_huggingface(
    folder: Path, shape: Shape = SMALL, tensors: Tensors | None = None, **changes: object
) -> Path:
    """A folder with config.json, model.safetensors and a tokenizer; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(shape, **changes)))
    save_file(random_tensors(shape) if tensors is None else tensors, folder / "model.safetensors")
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin(shape.vocab_size))
    return folder


def shard(folder: Path) -> None:
    """Splits a folder's model.safetensors in two, with the index that says so."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in (0, 1):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::2]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_llama2c(path: Path, shape: Shape = TIED, tensors: Tensors | None = None) -> Path:
    """A version-0 file, with tokenizer.bin beside it; returns the file."""
    tensors = random_tensors(shape) if tensors is None else tensors
    assert shape.head_dim * shape.num_attention_heads == shape.hidden_size
    header = struct.pack(
        "<7i",
        shape.hidden_size,
        shape.intermediate_size,
        shape.num_hidden_layers,
        shape.num_attention_heads,
        shape.num_key_value_heads,
        shape.vocab_size if shape.tie_word_embeddings else -shape.vocab_size,
        shape.max_position_embeddings,
    )
    parts = [tensors["model.embed_tokens.weight"]]
    for name in (
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ):
        for layer in range(shape.num_hidden_layers):
            tensor = tensors[f"{LAYER.format(layer)}{name}.weight"]
            rotary = name.endswith(("q_proj", "k_proj"))
            parts.append(interleave(tensor, shape.head_dim) if rotary else tensor)
    parts.append(tensors["model.norm.weight"])
    tables = shape.max_position_embeddings * shape.head_dim
    parts.append(np.full(tables, 7, dtype=np.float32))
    if not shape.tie_word_embeddings:
        parts.append(tensors["lm_head.weight"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + b"".join(part.astype("<f4").tobytes() for part in parts))
    (path.parent / "tokenizer.bin").write_bytes(tokenizer_bin(shape.vocab_size))
    return path


def interleave(tensor: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Half-split rows to neighbours: pair i of a head becomes rows 2i and 2i + 1."""
    heads = tensor.reshape(-1, 2, head_dim // 2, tensor.shape[1])
    swapped: NDArray[Any] = heads.transpose(0, 2, 1, 3).reshape(tensor.shape)
    return swapped
