"""Readers of checkpoints, against the libraries that write them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    SMALL,
    TIED,
    Shape,
    random_tensors,
    save_huggingface,
    save_llama2c,
    shard,
    tokenizer_bin,
)

from host.checkpoint import Checkpoint, load_checkpoint
from host.errors import InputError
from host.tokenizer import PieceType


def assert_same_tensors(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    assert sorted(checkpoint.tensors) == sorted(expected)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, np.asarray(expected[name], dtype=np.float32)), name


@pytest.mark.parametrize(
    ("dtype", "layers", "kv_heads", "head_dim", "tied", "theta", "shard_size"),
    [
        ("float32", 1, 1, 10, False, 10000.0, "5GB"),
        ("float16", 2, 3, 8, True, 500000.0, "5GB"),
        ("bfloat16", 3, 6, 4, False, 500000.0, "20KB"),
        ("float32", 2, 2, 8, True, 10000.0, "20KB"),
    ],
)
def test_what_transformers_saves(
    tmp_path: Path,
    dtype: str,
    layers: int,
    kv_heads: int,
    head_dim: int,
    tied: bool,
    theta: float,
    shard_size: str,
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=42,
        intermediate_size=50,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(300))

    checkpoint = load_checkpoint(tmp_path)
    expected = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]
    assert_same_tensors(checkpoint, expected)
    read = checkpoint.config
    assert (read.num_hidden_layers, read.num_key_value_heads) == (layers, kv_heads)
    assert (read.head_dim, read.rope_theta) == (head_dim, theta)
    assert (read.tie_word_embeddings, read.hidden_size) == (tied, 42)
    assert read.rms_norm_eps == config.rms_norm_eps


@pytest.mark.parametrize("shape", [SMALL, TIED])
def test_llama2c_is_read_as_the_same_model_in_safetensors(tmp_path: Path, shape: Shape) -> None:
    tensors = random_tensors(shape)
    theirs = load_checkpoint(save_huggingface(tmp_path / "hf", shape, tensors))
    ours = load_checkpoint(save_llama2c(tmp_path / "l2c" / "hf.bin", shape, tensors))
    assert_same_tensors(ours, tensors)
    assert_same_tensors(theirs, tensors)
    assert ours.config == theirs.config
    assert ours.tokenizer == theirs.tokenizer


@pytest.mark.shared
def test_stories260k(stories260k_bin: Path) -> None:
    checkpoint = load_checkpoint(stories260k_bin)
    config = checkpoint.config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (512, 64, 172)
    assert (config.num_hidden_layers, config.num_attention_heads) == (5, 8)
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)
    assert config.tie_word_embeddings
    assert checkpoint.tokenizer.vocab_size == 512
    # The embedding is the file's first array, the final norm the last but the two tables.
    raw = np.fromfile(stories260k_bin, "<f4", offset=28)
    assert np.array_equal(checkpoint.tensors["model.embed_tokens.weight"].ravel(), raw[: 512 * 64])
    tables = 512 * 8
    assert np.array_equal(checkpoint.tensors["model.norm.weight"], raw[-64 - tables : -tables])


@pytest.mark.shared
def test_surrogate(surrogate_dir: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    expected = safetensors.load_file(surrogate_dir / "model.safetensors")
    checkpoint = load_checkpoint(surrogate_dir)
    assert_same_tensors(checkpoint, expected)
    assert checkpoint.config.name == "tiny-llm-surrogate"
    assert checkpoint.config.add_bos_token


def test_tensors_are_read_when_looked_up(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path)
    checkpoint = load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.tensors["model.norm.weight"]


def test_shards_hold_the_same(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path)
    shard(folder)
    assert_same_tensors(load_checkpoint(folder), random_tensors(SMALL))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"rope_theta": None}, "rope_theta", 10000.0),
        ({"rope_theta": 500000}, "rope_theta", 500000.0),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta",
            5e5,
        ),
        ({"rope_scaling": {"type": "default"}}, "rope_theta", 10000.0),
        ({"head_dim": None}, "head_dim", 6),
        ({"eos_token_id": [7, 9]}, "eos_token_id", 7),
        ({"eos_token_id": None}, "eos_token_id", 2),
        ({"bos_token_id": -1}, "bos_token_id", -1),
        ({"bos_token_id": -1}, "add_bos_token", False),
        ({"model_type": None}, "vocab_size", 300),
        ({"architectures": None}, "vocab_size", 300),
        ({"sliding_window": 4096, "use_sliding_window": False}, "vocab_size", 300),
        ({"layer_types": ["full_attention"] * 2}, "num_hidden_layers", 2),
        ({"rms_norm_eps": None}, "rms_norm_eps", 1e-6),
    ],
)
def test_config_field(tmp_path: Path, changes: dict[str, Any], field: str, value: object) -> None:
    folder = save_huggingface(tmp_path, **changes)
    assert getattr(load_checkpoint(folder).config, field) == value


def test_absent_key_value_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    shape = Shape(num_key_value_heads=4)
    folder = save_huggingface(tmp_path, shape, num_key_value_heads=None)
    assert load_checkpoint(folder).config.num_key_value_heads == 4


def test_padded_embedding_gets_pieces_that_are_never_shown(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path)
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin(290))
    pieces = load_checkpoint(folder).tokenizer.pieces
    assert len(pieces) == 300
    assert {piece.type for piece in pieces[290:]} == {PieceType.CONTROL}
    assert pieces[289].type is PieceType.NORMAL


def test_derived_tensors_and_a_tied_head_are_passed_over(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    more = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, dtype=np.float32),
    }
    folder = save_huggingface(tmp_path, TIED, tensors | more)
    assert_same_tensors(load_checkpoint(folder), tensors)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Llama 3", "Llama_3"),
        (".hidden", "hidden"),
        ("ü" * 40, "_" * 31),
        ("models--arnir0--Tiny-LLM/snapshots/0a1b2c", "Tiny-LLM"),
    ],
)
def test_names_are_made_fit_for_the_device(tmp_path: Path, folder: str, name: str) -> None:
    assert load_checkpoint(save_huggingface(tmp_path / folder)).config.name == name


# --- The hub --------------------------------------------------------------------------------------


def test_hub_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_huggingface(tmp_path / "snapshot")
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("owner/some-model").config.name == "some-model"
    assert asked[0][0] == "owner/some-model"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked[0][1])


def test_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise RuntimeError(f"cannot reach {name}\nand more lines: {allow_patterns}")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not give it: cannot reach owner/model\\."):
        load_checkpoint("owner/model")


def test_hub_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pip install huggingface-hub"):
        load_checkpoint("owner/model")
