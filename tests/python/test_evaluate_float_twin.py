"""The float twin against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_files import TIED, save_huggingface, tokenizer_bin

from host.checkpoint import Checkpoint, load_checkpoint
from host.evaluate.float_twin import FloatModel
from host.package import Package
from host.quantize import quantize_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4


def transformers_logits(model: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = (
            model.float().eval()(torch.tensor([tokens])).logits[0].numpy()
        )
    return logits


def transformers_model(checkpoint: Checkpoint) -> Any:
    """What transformers makes of a checkpoint that was read by us."""
    config = checkpoint.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in checkpoint.tensors.items()}
    missing = model.load_state_dict(tensors, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model


def random_tokens(vocab: int, n: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(3).integers(0, vocab, n).tolist()
    return tokens


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn"),
    [(1, 42, 6, 6, 8, 51), (2, 45, 3, 1, 14, 77), (3, 56, 8, 2, 6, 129)],
)
def test_random_checkpoints_that_transformers_saved(
    tmp_path: Path,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    tied: bool,
    theta: float,
) -> None:
    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=311,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=64,
        initializer_range=0.3,
        rms_norm_eps=1e-3,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.2, 2)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(311))
    tokens = random_tokens(311, 64)
    expected = transformers_logits(model, tokens)
    found = FloatModel.from_checkpoint(load_checkpoint(tmp_path)).logits(tokens)
    assert np.std(expected) > 0.3
    assert np.max(np.abs(found - expected)) <= TOLERANCE


@pytest.mark.shared
def test_stories260k(stories260k_bin: Path) -> None:
    checkpoint = load_checkpoint(stories260k_bin)
    tokens = random_tokens(512, 300)
    expected = transformers_logits(transformers_model(checkpoint), tokens)
    found = FloatModel.from_checkpoint(checkpoint).logits(tokens)
    assert np.max(np.abs(found - expected)) <= TOLERANCE


@pytest.mark.shared
def test_surrogate(surrogate_dir: Path) -> None:
    tokens = random_tokens(32000, 300)
    model = transformers.LlamaForCausalLM.from_pretrained(surrogate_dir)
    expected = transformers_logits(model, tokens)
    found = FloatModel.from_checkpoint(load_checkpoint(surrogate_dir)).logits(tokens)
    assert np.max(np.abs(found - expected)) <= TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_a_packages_weights_are_those_its_integers_stand_for(tmp_path: Path, tied: bool) -> None:
    shape = TIED if tied else TIED.__class__(num_hidden_layers=2)
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "hf", shape, rope_theta=500000.0))
    quantize_checkpoint(checkpoint, tmp_path / "package")
    package = Package.open(tmp_path / "package")
    rounded = FloatModel.from_package(package)
    names = {
        place.key: entry
        for place, entry in zip(package.model.places, package.model.tensors, strict=True)
    }
    last = "q_proj" if tied else "layer01_q_proj"
    scale = names[last].scale.value
    index = list(names).index(last)
    weights = rounded._layers[-1]["q_proj"]
    assert np.array_equal(weights, (package.tensor(index) * scale).astype(np.float32))
    exact = FloatModel.from_checkpoint(checkpoint)
    tokens = random_tokens(shape.vocab_size, 20)
    apart = np.abs(rounded.logits(tokens) - exact.logits(tokens))
    # What INT8 costs: something, but not much.
    assert 0 < np.max(apart) < 0.1 * np.max(np.abs(exact.logits(tokens)))


def test_a_window_has_to_fit_the_context(tmp_path: Path) -> None:
    model = FloatModel.from_checkpoint(load_checkpoint(save_huggingface(tmp_path)))
    for tokens in ([], [0] * 33):
        with pytest.raises(ValueError, match="window"):
            model.logits(tokens)
