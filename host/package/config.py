"""`model_config.json` and `quantization_scales.json`: the facts for people and tools."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from host.errors import InputError
from host.package.constants import attention_scale, epsilon, rope_frequencies
from host.package.facts import MAX_CONTEXT, NO_TOKEN, ModelFacts, Scale
from host.package.layout import CONFIG, SCALES, Dimensions, DType, TensorPlace
from host.package.manifest import check_format
from host.strict_json import JsonObject, parse_object

CONFIG_FORMAT, SCALES_FORMAT = "tinyllm-config", "tinyllm-scales"
VERSION = 1
_REMEDY = "Make the package again"
_MOST = 1 << 31


@dataclass(frozen=True)
class PackageConfig:
    """What `model_config.json` says; names and meaning are those of Hugging Face's config.json.

    Attributes:
        name: What people call the model.
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
        source: What the package was made from.
    """

    name: str
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
    source: str

    @property
    def dimensions(self) -> Dimensions:
        """The engine's sizes; a longer context than it supports is cut."""
        return Dimensions(
            vocab=self.vocab_size,
            hidden=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            ffn=self.intermediate_size,
            context=min(self.max_position_embeddings, MAX_CONTEXT),
        )


@dataclass(frozen=True)
class TensorScale:
    """What `quantization_scales.json` says of one tensor.

    Attributes:
        place: Name, file, type and shape.
        scale: What an element of 1 stands for.
        snr_db: Signal to quantization noise, dB; None where there is no noise, or no signal.
        clipped: Share of the elements that were clamped, 0 to 1.
    """

    place: TensorPlace
    scale: Scale
    snr_db: float | None
    clipped: float


def pack_config(config: PackageConfig) -> bytes:
    """Returns the content of `model_config.json`."""
    return _dump({"format": CONFIG_FORMAT, "version": VERSION, **asdict(config)})


def parse_config(data: bytes, name: str = CONFIG) -> PackageConfig:
    """Reads the content of a `model_config.json`.

    Raises:
        InputError: It is none, or a value is of the wrong type or far out of range.
    """
    content = parse_object(data, name, _REMEDY)
    check_format(content, CONFIG_FORMAT, VERSION)
    content.only(["format", "version", *(field.name for field in fields(PackageConfig))])
    return PackageConfig(
        name=content.text("name"),
        vocab_size=content.integer("vocab_size", 1, _MOST),
        hidden_size=content.integer("hidden_size", 1, _MOST),
        num_hidden_layers=content.integer("num_hidden_layers", 1, _MOST),
        num_attention_heads=content.integer("num_attention_heads", 1, _MOST),
        num_key_value_heads=content.integer("num_key_value_heads", 1, _MOST),
        head_dim=content.integer("head_dim", 1, _MOST),
        intermediate_size=content.integer("intermediate_size", 1, _MOST),
        max_position_embeddings=content.integer("max_position_embeddings", 1, _MOST),
        rms_norm_eps=content.number("rms_norm_eps", 0, 1),
        rope_theta=content.number("rope_theta", 1, 1e15),
        tie_word_embeddings=content.flag("tie_word_embeddings"),
        bos_token_id=content.integer("bos_token_id", NO_TOKEN, _MOST),
        eos_token_id=content.integer("eos_token_id", NO_TOKEN, _MOST),
        add_bos_token=content.flag("add_bos_token"),
        source=content.text("source"),
    )


def pack_scales(scheme: str, tensors: Iterable[TensorScale]) -> bytes:
    """Returns the content of `quantization_scales.json`.

    Args:
        scheme: How the matrices were quantized, such as ``int8-per-tensor``.
        tensors: Every tensor, a tied head included.
    """
    content = {
        tensor.place.key: {
            "file": tensor.place.file,
            "dtype": tensor.place.dtype.name.lower(),
            "shape": _shape(tensor.place),
            "scale": tensor.scale.value,
            "multiplier": tensor.scale.m,
            "exponent": tensor.scale.e,
            "snr_db": None if tensor.snr_db is None else round(tensor.snr_db, 2),
            "clipped": tensor.clipped,
        }
        for tensor in tensors
    }
    return _dump(
        {"format": SCALES_FORMAT, "version": VERSION, "scheme": scheme, "tensors": content}
    )


def check_config(config: PackageConfig, model: ModelFacts) -> None:
    """Checks that configuration and descriptor state the same model.

    Raises:
        InputError: They differ; the message names the field.
    """
    same = {
        "name": config.name == model.name,
        "the sizes": config.dimensions == model.dimensions,
        "tie_word_embeddings": config.tie_word_embeddings == model.tied,
        "bos_token_id": config.bos_token_id == model.bos,
        "eos_token_id": config.eos_token_id == model.eos,
        "add_bos_token": config.add_bos_token == model.add_bos,
        "rms_norm_eps": epsilon(config.rms_norm_eps) == (model.eps_m, model.eps_e),
        "head_dim": attention_scale(config.head_dim) == model.attn_scale,
        "rope_theta": rope_frequencies(config.rope_theta, config.head_dim).tolist()
        == model.rope_freq.tolist(),
    }
    for what, equal in same.items():
        if not equal:
            raise _disagree(CONFIG, what)


def check_scales(data: bytes, model: ModelFacts, name: str = SCALES) -> None:
    """Checks that the content of a `quantization_scales.json` is what the descriptor states.

    Raises:
        InputError: It is no such file, or differs; the message names the tensor.
    """
    content = parse_object(data, name, _REMEDY)
    check_format(content, SCALES_FORMAT, VERSION)
    content.text("scheme")
    tensors = content.child("tensors")
    tensors.only(place.key for place in model.places)
    for place, entry in zip(model.places, model.tensors, strict=True):
        if not _same_scale(tensors.child(place.key), place, entry.scale):
            raise _disagree(SCALES, place.key)


def _same_scale(found: JsonObject, place: TensorPlace, scale: Scale) -> bool:
    return (
        found.text("file") == place.file
        and found.text("dtype") == place.dtype.name.lower()
        and found.items("shape") == _shape(place)
        and found.raw("multiplier") == scale.m
        and found.raw("exponent") == scale.e
        and found.raw("scale") == scale.value
    )


def _shape(place: TensorPlace) -> list[int]:
    return [place.cols] if place.dtype is DType.INT16 else [place.rows, place.cols]


def _disagree(name: str, what: str) -> InputError:
    return InputError(f"{name} and the descriptor disagree about {what}", _REMEDY)


def _dump(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
