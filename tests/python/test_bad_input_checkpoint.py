"""Checkpoints that are damaged, hostile or not supported: one sentence, and no traceback."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    SMALL,
    TIED,
    Shape,
    config_of,
    random_tensors,
    save_huggingface,
    save_llama2c,
    shard,
    tokenizer_bin,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from host.checkpoint import load_checkpoint
from host.checkpoint.llama_config import read_config
from host.checkpoint.safetensors_file import list_tensors
from host.errors import ExitCode, InputError
from host.strict_json import parse_object

Damage = Callable[[Path], object]
QUICK = settings(max_examples=150)


def refuse(path: str | Path, match: str, tokenizer: Path | None = None) -> None:
    """Loading, reading included, ends in one sentence and the next step."""
    with pytest.raises(InputError, match=match) as caught:
        for _ in load_checkpoint(path, tokenizer).tensors.values():
            pass
    assert caught.value.next_step
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["MistralForCausalLM"]}, 'architecture "MistralForCausalLM"'),
        ({"architectures": ["LlamaModel"]}, 'architecture "LlamaModel"'),
        ({"model_type": "gemma2"}, 'model type "gemma2"'),
        ({"model_type": None, "architectures": None}, 'model type ""'),
        ({"hidden_act": "gelu"}, 'activation "gelu"'),
        ({"attention_bias": True}, "biases .attention_bias"),
        ({"mlp_bias": True}, "biases .mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, 'quantized already ."gptq"'),
        ({"sliding_window": 4096}, "sliding window .4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, '"sliding_attention"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'RoPE scaling "linear"'),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 'RoPE scaling "llama3"'),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'RoPE scaling "yarn"'),
        ({"rope_scaling": {"factor": 2.0}}, 'unknown field "factor"'),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta twice"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "300"}, "whole number is wanted"),
        ({"vocab_size": 300.0}, "whole number is wanted"),
        ({"vocab_size": True}, "whole number is wanted"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 10**30}, "beyond 64 bits"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_key_value_heads": 3}, "cannot share num_key_value_heads 3"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5"),
        ({"num_attention_heads": 5, "head_dim": None}, "cannot be shared by 5 heads"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"bos_token_id": 300}, "bos_token_id is 300"),
        ({"eos_token_id": [2, 2.5][1:]}, "eos_token_id is 2.5"),
        ({"tie_word_embeddings": 1}, "true or false"),
        ({"vocab_size": 301}, "model.embed_tokens.weight is 300 x 24.*301 x 24"),
        ({"intermediate_size": 41}, "gate_proj.weight is 40 x 24.*41 x 24"),
        ({"head_dim": 8}, "q_proj.weight is 24 x 24.*32 x 24"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "not part of a plain Llama model"),
    ],
)
def test_config_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    save_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(SMALL, **changes)))
    refuse(tmp_path, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', 'the key "a" is there twice'),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"a": "\\ud800"}', "not valid UTF-8"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{}" + b" " * (1 << 20), "longer than 1048576 bytes"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: bytes, match: str) -> None:
    save_huggingface(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    refuse(tmp_path, match)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    *config_of(SMALL),
    "attention_bias",
    "layer_types",
    "mlp_bias",
    "partial_rotary_factor",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
]


@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
@example({"eos_token_id": [[]]})
@example({"rope_scaling": {"rope_theta": []}})
@example({"architectures": [{}]})
def test_any_config_is_read_or_refused(changes: dict[str, Any]) -> None:
    data = json.dumps(config_of(SMALL, **changes)).encode()
    try:
        config = read_config(parse_object(data, "config.json", "Do so"), "m", 1, 2, True)
    except InputError:
        return
    sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.head_dim)
    assert all(type(size) is int and size >= 1 for size in sizes)
    assert -1 <= config.bos_token_id < config.vocab_size
    assert -1 <= config.eos_token_id < config.vocab_size
    assert config.num_attention_heads % config.num_key_value_heads == 0


# --- safetensors ----------------------------------------------------------------------------------


def safetensors_file(path: Path, header: object, body: bytes = b"") -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)
    return path


def entry(first: int, last: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlap"),
        ({"a": entry(0, 8)}, "end 8 bytes before"),
        ({"a": entry(8, 16)}, "overlap or have gaps"),
        ({"a": entry(0, 8), "b": entry(12, 16, (1,))}, "overlap or have gaps"),
        ({"a": entry(0, 24, (6,))}, "not inside the file"),
        ({"a": entry(8, 0, (0,))}, "not inside the file"),
        ({"a": entry(0, 16, (5,))}, "do not fit its shape"),
        ({"a": entry(0, 16, (2**61, 2**61))}, "do not fit its shape"),
        ({"a": entry(0, 16, (2**62,))}, "not made of whole numbers"),
        ({"a": entry(0, 16, (1,) * 8 + (4,))}, "has 9 numbers"),
        ({"a": entry(0, 16, (4,), "F31")}, "type 'F31' is unknown"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "data_offsets is missing"),
        ({"a": {**entry(0, 16, (4,)), "x": 1}}, 'unknown field "x"'),
        ({"a": {**entry(0, 16, (4,)), "shape": [-4]}}, "not made of whole numbers"),
        ({"a": {**entry(0, 16, (4,)), "shape": [4.0]}}, "not made of whole numbers"),
        ({"a": {**entry(0, 16, (4,)), "data_offsets": [0, 8, 16]}}, "has 3 numbers"),
        ({"a": {**entry(0, 16, (4,)), "data_offsets": [16]}}, "not inside the file"),
        ({"a": []}, "an object is wanted"),
        (b'{"a": 1, "a": 2}', "there twice"),
        (b" {}", "does not begin with a header"),
        (b"{", "cannot be 1 bytes long"),
        (b"{]", "not valid JSON"),
    ],
)
def test_safetensors_header(tmp_path: Path, header: object, match: str) -> None:
    path = safetensors_file(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(InputError, match=match):
        list_tensors(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**31, 100, 0])
def test_safetensors_header_beyond_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InputError, match="header cannot be"):
        list_tensors(path)


@QUICK
@given(st.data())
def test_any_change_of_a_safetensors_header_is_read_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.float16)}, path)
    whole = bytearray(path.read_bytes())
    header_end = 8 + struct.unpack_from("<Q", whole)[0]
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole))) or len(whole)])
    try:
        tensors = list_tensors(path)
    except InputError:
        return
    for tensor in tensors.values():
        assert header_end <= tensor.offset <= path.stat().st_size
        if tensor.dtype in ("F32", "F16", "BF16"):
            assert tensor.read().shape == tensor.shape


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, by: int = 1) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-by])

    return damage


def with_tensors(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        tensors = random_tensors(SMALL)
        named = {name.replace("__", "."): value for name, value in changes.items()}
        kept = {k: v for k, v in (tensors | named).items() if v is not None}
        save_file(kept, folder / "model.safetensors")

    return damage


def with_value(name: str, value: float) -> Damage:
    def damage(folder: Path) -> None:
        tensors = random_tensors(SMALL)
        tensors[name].reshape(-1)[-1] = value
        save_file(tensors, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has neither model.safetensors nor"),
        (without("tokenizer.bin"), "tokenizer"),
        (truncate("model.safetensors"), "not inside the file"),
        (truncate("tokenizer.bin"), "breaks off"),
        (with_tensors(lm_head__weight=None), "no tensor lm_head.weight"),
        (with_tensors(lora_A=np.ones(3, np.float32)), "has the tensor lora_A"),
        (with_tensors(model__x__bias=np.ones(3, np.float32)), "which is a bias"),
        (with_tensors(model__norm__weight=np.ones(24, np.int8)), "stored as I8"),
        (with_tensors(model__norm__weight=np.ones((24, 1), np.float32)), "is 24 x 1"),
        (with_value("model.layers.1.mlp.up_proj.weight", np.nan), "1.mlp.up_proj.*a NaN"),
        (with_value("model.norm.weight", -np.inf), "model.norm.weight has a NaN or an inf"),
    ],
)
def test_damaged_folder(tmp_path: Path, damage: Damage, match: str) -> None:
    damage(save_huggingface(tmp_path))
    refuse(tmp_path, match)


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"model.norm.weight": "../model.safetensors"}, "no name of a safetensors file"),
        ({"model.norm.weight": "a\\b.safetensors"}, "no name of a safetensors file"),
        ({"model.norm.weight": "pytorch_model.bin"}, "no name of a safetensors file"),
        ({"model.norm.weight": "other.safetensors"}, "does not exist"),
        ({"model.norm.weight": 3}, "a text is wanted"),
        ({"more": "model-00001-of-00002.safetensors"}, "no tensor more"),
        ({}, "no tensor model.embed_tokens.weight"),
        ([], "an object is wanted"),
    ],
)
def test_index_of_shards(tmp_path: Path, weight_map: object, match: str) -> None:
    folder = save_huggingface(tmp_path)
    shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    refuse(folder, match)


# --- Pickles --------------------------------------------------------------------------------------


class Bomb:
    """What a pickle can do: run a program when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "x.PKL"])
def test_pickle_is_refused_unread(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark), protocol))
    refuse(tmp_path / name, "is a pickle.*safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "stories.bin"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    refuse(path, "is a pickle")


@pytest.mark.parametrize("with_config", [True, False])
def test_folder_with_nothing_but_pickles(tmp_path: Path, with_config: bool) -> None:
    save_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    if not with_config:
        (tmp_path / "config.json").unlink()
    refuse(tmp_path, "pytorch_model.bin is a pickle")


# --- llama2.c -------------------------------------------------------------------------------------


def test_dimension_640_is_no_pickle(tmp_path: Path) -> None:
    shape = Shape(
        hidden_size=640,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=320,
        num_hidden_layers=1,
        intermediate_size=1,
        vocab_size=260,
        tie_word_embeddings=True,
    )
    path = save_llama2c(tmp_path / "model.bin", shape)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_checkpoint(path).config.hidden_size == 640


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (b"", "too short"),
        (bytes(27), "too short"),
        (bytes(28), "does not begin with a llama2.c header"),
        (b"GGUF" + bytes(60), "GGUF"),
        (struct.pack("<I", 0x616B3432) + bytes(60), "version 1 or later"),
        (struct.pack("<7i", 24, 40, 1, 4, 2, 300, -5), "does not begin with"),
        (struct.pack("<7i", 24, 40, 1, 5, 5, 300, 32), "does not begin with"),
        (struct.pack("<7i", 24, 40, 1, 4, 3, 300, 32), "does not begin with"),
        (struct.pack("<7i", 12, 40, 1, 4, 2, 300, 32), "does not begin with"),
        (struct.pack("<7i", 24, 40, 1, 4, 2, -(2**31), 32), "does not begin with"),
        (struct.pack("<7i", 2**24, 2**24, 1000, 4, 2, 2**24, 2**24), "its header asks for"),
        (struct.pack("<7i", 24, 40, 1, 4, 2, 300, 32), "28 bytes long, and its header asks"),
    ],
)
def test_llama2c_header(tmp_path: Path, start: bytes, match: str) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(300))
    (tmp_path / "model.bin").write_bytes(start)
    refuse(tmp_path / "model.bin", match)


@pytest.mark.parametrize("change", [-1, -4, 1])
def test_llama2c_of_another_length(tmp_path: Path, change: int) -> None:
    path = save_llama2c(tmp_path / "model.bin")
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    refuse(path, "not a whole llama2.c checkpoint")


@QUICK
@given(st.binary(min_size=0, max_size=64))
@example(struct.pack("<7i", 1, 1, 1, 1, 1, 1, 1))
def test_any_bytes_are_no_llama2c_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(data)
    refuse(tmp_path / "model.bin", "model.bin")


def test_llama2c_with_a_nan(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 3] = np.nan
    refuse(save_llama2c(tmp_path / "model.bin", TIED, tensors), "q_proj.weight has a NaN")


def test_llama2c_without_its_tokenizer(tmp_path: Path) -> None:
    path = save_llama2c(tmp_path / "model.bin")
    (tmp_path / "tokenizer.bin").unlink()
    refuse(path, "no tokenizer beside")


@pytest.mark.parametrize("pieces", [299, 301])
def test_tokenizer_of_another_model(tmp_path: Path, pieces: int) -> None:
    path = save_llama2c(tmp_path / "model.bin")
    (tmp_path / "other.bin").write_bytes(tokenizer_bin(pieces))
    refuse(path, f"tokenizer has {pieces} pieces", tmp_path / "other.bin")


def test_larger_tokenizer_of_a_folder(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path)
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin(301))
    refuse(folder, "301 pieces and the model 300")


# --- Names ----------------------------------------------------------------------------------------


def test_names_that_are_nothing(tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", "does not exist")
    refuse(tmp_path, "has no config.json")
    folder = save_huggingface(tmp_path / "model")
    refuse(folder / "model.safetensors", "Name the folder")
    refuse(folder / "config.json", "Name the folder")
    package = tmp_path / "package"
    package.mkdir()
    (package / "descriptor.bin").touch()
    refuse(package, "is a package already")
