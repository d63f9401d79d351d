"""The Llama network that the training tools share, and the files it is kept in.

One module serves as student, teacher and evaluated model. Its parameters carry the
names that transformers gives them, so a state dict is a checkpoint, and rotary
positions rotate the two halves of a head as there.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from host.atomic import write_file

LLAMA2C_HEADER = struct.Struct("<7i")


class TrainingError(Exception):
    """An input that the training tools cannot use; its text is one sentence and the next step."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama network, in elements."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.hidden, self.layers, self.heads, self.kv_heads)
        if min(*sizes, self.feed_forward, self.context) < 1:
            raise TrainingError(f"{self} has a size below 1: every size must be positive.")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise TrainingError(
                f"hidden = {self.hidden} does not split into {self.heads} heads of even width: "
                "choose hidden as an even multiple of heads."
            )
        if self.heads % self.kv_heads:
            raise TrainingError(
                f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}: change one."
            )

    @property
    def head_width(self) -> int:
        """Elements of one attention head."""
        return self.hidden // self.heads


class Attention(nn.Module):
    """Causal grouped-query attention, (batch, time, hidden) -> the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, cache: KeyValues | None) -> Tensor:
        """Mixes positions; with a cache, x holds the one next position."""
        batch, time, _ = x.shape
        width = self.shape.head_width

        def split(y: Tensor) -> Tensor:
            return y.view(batch, time, -1, width).transpose(1, 2)

        q = rotation.apply(split(self.q_proj(x)))
        k = rotation.apply(split(self.k_proj(x)))
        v = split(self.v_proj(x))
        causal = cache is None
        if cache is not None:
            k, v = cache.append(k, v)
        if self.shape.kv_heads < self.shape.heads:
            if causal:
                repeats = self.shape.heads // self.shape.kv_heads
                k = k.repeat_interleave(repeats, dim=1)
                v = v.repeat_interleave(repeats, dim=1)
            else:  # one query a row: a group of heads is a short sequence of queries
                q = q.reshape(batch, self.shape.kv_heads, -1, width)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        mixed = mixed.reshape(batch, self.shape.heads, time, width)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return projected


class FeedForward(nn.Module):
    """The gated feed-forward, down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Computes each position alone."""
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, rotation: Rotation, cache: KeyValues | None) -> Tensor:
        """Maps (batch, time, hidden) to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, cache)
        fed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return fed


class Stack(nn.Module):
    """Everything below the head, under the name that transformers gives it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)


class Llama(nn.Module):
    """A Llama decoder, token ids (batch, time) -> logits (batch, time, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Stack(shape)
        if not shape.tied:
            self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        positions = torch.arange(shape.context, dtype=torch.float64)
        pairs = torch.arange(0, shape.head_width, 2, dtype=torch.float64)
        angles = positions[:, None] * shape.rope_theta ** (-pairs / shape.head_width)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def initialize(self, seed: int) -> None:
        """Draws the weights from normal distributions.

        Their deviation is 0.02 for the embedding and 1 / sqrt(fan-in) elsewhere; projections
        back into the residual are smaller by sqrt(2 * layers), as in GPT-2.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                    continue
                deviation = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    deviation /= (2 * self.shape.layers) ** 0.5
                weight.normal_(0.0, deviation, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (vocabulary, hidden)."""
        return self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight

    def forward(self, ids: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """With caches, one a layer, `ids` holds the one next token of each row."""
        start = caches[0].length if caches else 0
        rotation = Rotation(
            self.get_buffer("cosine")[start : start + ids.shape[1]],
            self.get_buffer("sine")[start : start + ids.shape[1]],
        )
        x = self.model.embed_tokens(ids)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, rotation, caches[index] if caches else None)
        return functional.linear(self.model.norm(x), self.head_weight)


@dataclass(frozen=True)
class Rotation:
    """Rotary positions: cosines and sines, each (time, head width / 2)."""

    cosine: Tensor
    sine: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotates (..., time, head width) by its positions."""
        left, right = x.chunk(2, dim=-1)
        return torch.cat(
            (left * self.cosine - right * self.sine, right * self.cosine + left * self.sine), dim=-1
        )


class KeyValues:
    """One layer's keys and values of the positions generated so far, a token a call."""

    def __init__(self, shape: Shape, batch: int) -> None:
        size = (batch, shape.kv_heads, shape.context, shape.head_width)
        self.keys = torch.empty(size)
        self.values = torch.empty(size)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one position and returns all so far, each (batch, kv heads, time, width)."""
        end = self.length + 1
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@torch.inference_mode()
def sample_rows(
    network: Llama,
    rows: int,
    length: int,
    *,
    first: int,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Draws `rows` token sequences of `length` ids each, int64, all beginning with `first`."""
    caches = [KeyValues(network.shape, rows) for _ in range(network.shape.layers)]
    out = torch.empty((rows, length), dtype=torch.int64)
    out[:, 0] = first
    for position in range(length - 1):
        logits = network(out[:, position : position + 1], caches)[:, 0]
        # The argmax of p / e with e exponential draws from p: one pass, no cumulative sum.
        weights = torch.softmax(logits / temperature, dim=-1)
        noise = torch.empty_like(weights).exponential_(generator=generator)
        out[:, position + 1] = (weights / noise).argmax(dim=-1)
    return out


def load_llama2c(path: Path) -> Llama:
    """Reads a llama2.c version-0 checkpoint (`legacy` export, float32).

    Raises TrainingError where the file is not exactly as long as its header says.
    """
    data = path.read_bytes()
    if len(data) < LLAMA2C_HEADER.size:
        raise TrainingError(f"{path} is too short for a llama2.c checkpoint: check the file.")
    hidden, ffn, layers, heads, kv_heads, vocabulary, context = LLAMA2C_HEADER.unpack_from(data)
    shape = Shape(
        abs(vocabulary), hidden, layers, heads, kv_heads, ffn, context, tied=vocabulary > 0
    )
    kv_width = kv_heads * shape.head_width
    layout: list[tuple[str, tuple[int, ...]]] = [
        ("embed", (shape.vocabulary, hidden)),
        ("input_layernorm", (layers, hidden)),
        ("self_attn.q_proj", (layers, hidden, hidden)),
        ("self_attn.k_proj", (layers, kv_width, hidden)),
        ("self_attn.v_proj", (layers, kv_width, hidden)),
        ("self_attn.o_proj", (layers, hidden, hidden)),
        ("post_attention_layernorm", (layers, hidden)),
        ("mlp.gate_proj", (layers, ffn, hidden)),
        ("mlp.down_proj", (layers, hidden, ffn)),
        ("mlp.up_proj", (layers, ffn, hidden)),
        ("norm", (hidden,)),
        ("rotary", (2, context, shape.head_width // 2)),
    ]
    if not shape.tied:
        layout.append(("head", (shape.vocabulary, hidden)))
    counts = [int(np.prod(size)) for _, size in layout]
    if len(data) != LLAMA2C_HEADER.size + 4 * sum(counts):
        raise TrainingError(f"{path} has not the length its header says: fetch it again.")
    flat = torch.from_numpy(np.frombuffer(data, "<f4", offset=LLAMA2C_HEADER.size).copy())
    parts = {
        name: part.view(size)
        for (name, size), part in zip(layout, torch.split(flat, counts), strict=True)
    }
    state = {"model.embed_tokens.weight": parts["embed"], "model.norm.weight": parts["norm"]}
    if not shape.tied:
        state["lm_head.weight"] = parts["head"]
    for name, part in parts.items():
        if name.startswith(("self_attn", "mlp", "input", "post")):
            for index in range(layers):
                weight = part[index]
                if name.endswith(("q_proj", "k_proj")):
                    weight = _halves_from_pairs(weight, shape.head_width)
                state[f"model.layers.{index}.{name}.weight"] = weight
    network = Llama(shape)
    network.load_state_dict(state)
    return network


def _halves_from_pairs(weight: Tensor, width: int) -> Tensor:
    """Reorders rows (heads * width, in) from rotating neighbours to rotating halves."""
    pairs = weight.view(-1, width // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def save_huggingface(network: Llama, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes config.json, generation_config.json and model.safetensors, as transformers reads."""
    shape = network.shape
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    # A story ends where the next one would begin.
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [1, 2]})
    state = {
        name: weight.detach().to("cpu", dtype).contiguous()
        for name, weight in network.state_dict().items()
    }
    write_file(folder / "model.safetensors", save(state, metadata={"format": "pt"}))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def load_huggingface(folder: Path) -> Llama:
    """Reads a directory as `save_huggingface` writes it; other Llama options are refused."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = Shape(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            feed_forward=config["intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=config.get("rope_theta", 10000.0),
            norm_epsilon=config["rms_norm_eps"],
            tied=config.get("tie_word_embeddings", False),
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{folder} has no usable config.json ({error}): check it.") from error
    network = Llama(shape)
    state = load_file(folder / "model.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in state.items()})
    return network


def load_network(path: Path) -> Llama:
    """A Hugging Face directory, or a llama2.c `.bin`."""
    if not path.exists():
        raise TrainingError(f"{path} does not exist: name a model directory or a llama2.c .bin.")
    return (load_huggingface(path) if path.is_dir() else load_llama2c(path)).eval()
