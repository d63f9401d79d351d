"""The Llama network that the training tools share, and the files it is kept in.

One module serves as student, teacher and evaluated model. Its parameters carry the
names that transformers gives them, so a state dict is a checkpoint, and rotary
positions rotate the two halves of a head as there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from host.atomic import write_file, writing
from host.checkpoint import Checkpoint
from host.errors import InputError


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama network, in elements; a `head_dim` of 0 becomes hidden / heads."""

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
    head_dim: int = 0

    def __post_init__(self) -> None:
        if not self.head_dim and self.hidden % self.heads == 0:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if not self.head_dim or self.head_dim % 2:
            raise InputError(
                f"hidden = {self.hidden} does not split into {self.heads} heads of even width",
                "Choose hidden as an even multiple of heads",
            )
        if self.heads % self.kv_heads:
            raise InputError(
                f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}", "Change one"
            )


class Attention(nn.Module):
    """Causal grouped-query attention, (batch, time, hidden) -> the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, q_width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, shape.hidden, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, cache: KeyValues | None) -> Tensor:
        """Mixes positions; with a cache, x holds the one next position."""
        batch, time, _ = x.shape
        width = self.shape.head_dim

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
        pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64)
        angles = positions[:, None] * shape.rope_theta ** (-pairs / shape.head_dim)
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
        size = (batch, shape.kv_heads, shape.context, shape.head_dim)
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
        "head_dim": shape.head_dim,
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
    with writing(folder):
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


def make_network(checkpoint: Checkpoint) -> Llama:
    """The network of a checkpoint that the host tool read, ready to evaluate."""
    config = checkpoint.config
    network = Llama(
        Shape(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            feed_forward=config.intermediate_size,
            context=config.max_position_embeddings,
            rope_theta=config.rope_theta,
            norm_epsilon=config.rms_norm_eps,
            tied=config.tie_word_embeddings,
            head_dim=config.head_dim,
        )
    )
    state = {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(state)
    return network.eval()
