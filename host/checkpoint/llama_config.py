"""Reads Hugging Face's config.json, refusing by name what the engine does not compute."""

from __future__ import annotations

from host.checkpoint.model import LlamaConfig
from host.errors import InputError
from host.strict_json import JsonObject, shown

NO_TOKEN = -1
_ARCHITECTURE = "LlamaForCausalLM"
_MODEL_TYPE = "llama"
_MOST = 1 << 31
_DEFAULT_ROPE_THETA = 10000.0
_ROPE_FIELDS = ("rope_scaling", "rope_parameters")


def read_config(content: JsonObject, name: str, bos: int, eos: int, add_bos: bool) -> LlamaConfig:
    """Reads a model's configuration.

    Args:
        content: What config.json holds.
        name: What people call the model.
        bos: The tokenizer's token that begins a text, taken where config.json is silent.
        eos: The same for the token that ends one.
        add_bos: Whether the tokenizer puts BOS in front of texts.

    Raises:
        InputError: A field is missing, of the wrong type or out of range, or asks for what is not
            supported, which the message names.
    """
    _refuse_unsupported(content)
    hidden = content.integer("hidden_size", 1, _MOST)
    heads = content.integer("num_attention_heads", 1, _MOST)
    vocab = content.integer("vocab_size", 1, _MOST)
    if "head_dim" not in content and hidden % heads:
        raise content.wrong(f"hidden_size {hidden} cannot be shared by {heads} heads")
    kv_heads = content.integer("num_key_value_heads", 1, heads, default=heads)
    if heads % kv_heads:
        raise content.wrong(f"{heads} heads cannot share num_key_value_heads {kv_heads}")
    bos = _token(content, "bos_token_id", bos, vocab)
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=content.integer("num_hidden_layers", 1, 1000),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=content.integer("head_dim", 1, _MOST, default=hidden // heads),
        intermediate_size=content.integer("intermediate_size", 1, _MOST),
        max_position_embeddings=content.integer("max_position_embeddings", 1, _MOST, default=2048),
        rms_norm_eps=content.number("rms_norm_eps", 1e-30, 1, default=1e-6),
        rope_theta=_rope_theta(content),
        tie_word_embeddings=content.flag("tie_word_embeddings", default=False),
        bos_token_id=bos,
        eos_token_id=_token(content, "eos_token_id", eos, vocab),
        add_bos_token=add_bos and bos != NO_TOKEN,
        name=name,
    )


def _refuse_unsupported(content: JsonObject) -> None:
    architectures = content.items("architectures") if "architectures" in content else []
    for architecture in architectures:
        if architecture != _ARCHITECTURE:
            raise _unsupported(content, f"the architecture {shown(architecture)}")
    model_type = content.text("model_type", default=_MODEL_TYPE if architectures else "")
    if model_type != _MODEL_TYPE:
        raise _unsupported(content, f"the model type {shown(model_type)}")
    activation = content.text("hidden_act", default="silu")
    if activation not in ("silu", "swish"):
        raise _unsupported(content, f"the activation {shown(activation)}")
    for key in ("attention_bias", "mlp_bias"):
        if content.flag(key, default=False):
            raise _unsupported(content, f"biases ({key})")
    if "quantization_config" in content:
        method = content.child("quantization_config").raw("quant_method")
        raise _unsupported(content, f"weights that are quantized already ({shown(method)})")
    if "sliding_window" in content and content.raw("use_sliding_window") is not False:
        raise _unsupported(content, f"a sliding window ({shown(content.raw('sliding_window'))})")
    if "layer_types" in content:
        for kind in content.items("layer_types"):
            if kind != "full_attention":
                raise _unsupported(content, f"layers of the type {shown(kind)}")
    if content.number("partial_rotary_factor", 0, 1, default=1) != 1:
        raise _unsupported(content, "a partial rotary embedding (partial_rotary_factor)")
    for key in _ROPE_FIELDS:
        if key in content:
            _refuse_rope(content.child(key))


def _refuse_rope(rope: JsonObject) -> None:
    for key in ("rope_type", "type"):
        kind = rope.raw(key)
        if kind is not None and kind != "default":
            raise _unsupported(rope, f"the RoPE scaling {shown(kind)}")
    rope.only(("rope_type", "type", "rope_theta", "partial_rotary_factor"))
    if rope.number("partial_rotary_factor", 0, 1, default=1) != 1:
        raise _unsupported(rope, "a partial rotary embedding (partial_rotary_factor)")


def _rope_theta(content: JsonObject) -> float:
    places = [content, *(content.child(key) for key in _ROPE_FIELDS if key in content)]
    found = {place.number("rope_theta", 1, 1e15) for place in places if "rope_theta" in place}
    if len(found) > 1:
        raise content.wrong(f"it states rope_theta twice, as {min(found)} and {max(found)}")
    return found.pop() if found else _DEFAULT_ROPE_THETA


def _token(content: JsonObject, key: str, default: int, vocab: int) -> int:
    value = content.raw(key)
    if isinstance(value, list) and value:
        # Some models have several tokens that end a text; the first is the one they are trained on.
        value = value[0]
        return JsonObject({key: value}, content.name, content.next_step).integer(key, 0, vocab - 1)
    if value == NO_TOKEN:
        return NO_TOKEN
    return content.integer(key, 0, vocab - 1) if key in content else default


def _unsupported(content: JsonObject, what: str) -> InputError:
    return InputError(
        f"{content.name} asks for {what}, which is not supported", "Use a plain Llama model"
    )
