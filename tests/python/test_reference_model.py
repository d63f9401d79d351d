"""The reference's forward pass against float arithmetic, and its batches, traces and sessions."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import SMALL, TIED, Shape, random_tensors, save_huggingface

from host.checkpoint import load_checkpoint
from host.evaluate.float_twin import FloatModel
from host.package import Package
from host.quantize import quantize_checkpoint
from host.reference.model import Mantissas, ReferenceModel, Stage, stage_crc

ODD = Shape(hidden_size=30, num_attention_heads=6, num_key_value_heads=3, intermediate_size=301)
LARGE_EPS = {"rms_norm_eps": 0.7, "rope_theta": 500000.0}


def make_package(folder: Path, shape: Shape = SMALL, **changes: object) -> Package:
    tensors = random_tensors(shape)
    # Gains and heads as large as trained ones, so that attention is far from even.
    for name, tensor in tensors.items():
        if "norm" not in name:
            tensor *= 4
    checkpoint = load_checkpoint(save_huggingface(folder / "hf", shape, tensors, **changes))
    quantize_checkpoint(checkpoint, folder / "package")
    return Package.open(folder / "package")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("small"))


def random_tokens(package: Package, n: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, package.model.vocab, n).tolist()
    return tokens


@pytest.mark.parametrize("shape", [SMALL, TIED, ODD])
@pytest.mark.parametrize("changes", [{}, LARGE_EPS])
def test_logits_are_near_those_of_float_arithmetic_on_the_same_weights(
    tmp_path: Path, shape: Shape, changes: dict[str, object]
) -> None:
    package = make_package(tmp_path, shape, **changes)
    tokens = random_tokens(package, package.model.context)
    logits = ReferenceModel(package).feed(tokens, logits="all")
    assert logits is not None
    expected = FloatModel.from_package(package).logits(tokens)
    # Activations have 15 bits; some 20 roundings of them lie between a token and its logits.
    assert np.max(np.abs(logits.values() - expected)) <= 2e-3 * np.max(np.abs(expected))
    assert np.std(expected) > 0.1


def collect(model: ReferenceModel, parts: list[list[int]]) -> dict[tuple[int, int, int], int]:
    found: dict[tuple[int, int, int], int] = {}

    def keep(stage: Stage, layer: int, pos: int, mantissas: Mantissas, exponent: int) -> None:
        assert (pos, stage, layer) not in found
        found[pos, stage, layer] = stage_crc(mantissas, exponent)

    for part in parts:
        model.feed(part, logits="all", trace=keep)
    return found


def test_batches_change_nothing(package: Package) -> None:
    tokens = random_tokens(package, 30)
    runs = []
    for size in (30, 1, 7):
        model = ReferenceModel(package)
        parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        runs.append(collect(model, parts))
        assert model.n_past == 30
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 30 * (1 + 11 * package.model.layers + 2)


def test_long_prompts_are_cut_into_batches(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(package, 30)
    whole = ReferenceModel(package).feed(tokens)
    monkeypatch.setattr("host.reference.model._BATCH", 8)
    model = ReferenceModel(package)
    cut = model.feed(tokens)
    assert whole is not None
    assert cut is not None
    assert np.array_equal(whole.m, cut.m)
    assert whole.m.shape == (1, package.model.vocab)
    assert model.n_past == 30


def test_a_rewound_model_forgets_what_followed(package: Package) -> None:
    tokens, others = random_tokens(package, 12), random_tokens(package, 12, seed=1)
    model = ReferenceModel(package)
    model.feed([*tokens[:5], *others])
    model.rewind(5)
    again = model.feed(tokens[5:])
    straight = ReferenceModel(package).feed(tokens)
    assert again is not None
    assert straight is not None
    assert np.array_equal(again.m, straight.m)
    assert np.array_equal(again.e, straight.e)


def test_only_the_logits_asked_for_are_computed(package: Package) -> None:
    tokens = random_tokens(package, 6)
    every = ReferenceModel(package).feed(tokens, logits="all")
    assert every is not None
    assert every.m.shape == (6, package.model.vocab)
    for which, positions in (("none", []), ("last", [5]), ("all", [0, 1, 2, 3, 4, 5])):
        heads: list[int] = []

        def keep(
            stage: Stage, _l: int, pos: int, _m: Mantissas, _e: int, to: list[int] = heads
        ) -> None:
            if stage is Stage.LOGITS:
                to.append(pos)

        found = ReferenceModel(package).feed(tokens, logits=which, trace=keep)  # type: ignore[arg-type]
        assert heads == positions
        if found is None:
            assert which == "none"
        else:
            assert np.array_equal(found.m, every.m[positions])


def test_stages_come_in_order_and_in_their_types(package: Package) -> None:
    seen: list[tuple[str, int, np.dtype[np.int16] | np.dtype[np.int32]]] = []
    ReferenceModel(package).feed(
        [5], trace=lambda stage, layer, _p, m, _e: seen.append((stage.label, layer, m.dtype))
    )
    short, long = np.dtype(np.int16), np.dtype(np.int32)
    of_layer = [
        ("attn_norm", short),
        ("q", short),
        ("k", short),
        ("v", short),
        ("attn", short),
        ("attn_out", long),
        ("ffn_norm", short),
        ("gate", long),
        ("up", long),
        ("act", short),
        ("ffn_out", long),
    ]
    layers = [(name, i, kind) for i in range(package.model.layers) for name, kind in of_layer]
    ends = [("final_norm", 0, short), ("logits", 0, long)]
    assert seen == [("embed", 0, long), *layers, *ends]


def test_crc_of_a_stage_is_of_little_endian_mantissas_and_exponent() -> None:
    short = np.array([1, -2, 32767], dtype=np.int16)
    assert stage_crc(short, -20) == zlib.crc32(struct.pack("<3hi", 1, -2, 32767, -20))
    long = np.array([1, -(2**29)], dtype=">i4")
    assert stage_crc(long, 7) == zlib.crc32(struct.pack("<2ii", 1, -(2**29), 7))


def test_what_cannot_be_fed_is_refused(package: Package) -> None:
    model = ReferenceModel(package)
    context, vocab = package.model.context, package.model.vocab
    for tokens in ([], [vocab], [-1], [0] * (context + 1)):
        with pytest.raises(ValueError):
            model.feed(tokens)
    model.feed([0] * context)
    with pytest.raises(ValueError, match="context"):
        model.feed([0])
    for n_past in (-1, context + 1):
        with pytest.raises(ValueError, match="rewind"):
            model.rewind(n_past)


def test_one_wrong_bit_of_a_weight_is_seen(package: Package) -> None:
    tokens = random_tokens(package, 4)
    right = collect(ReferenceModel(package), [tokens])
    model = ReferenceModel(package)
    layer = model._layers[1]
    weights = layer.up_proj.weights.copy()
    weights[3, 4] ^= 64
    model._layers[1] = replace(layer, up_proj=replace(layer.up_proj, weights=weights))
    wrong = collect(model, [tokens])
    # Dictionaries keep the order of the reports: stage by stage, all positions of each.
    assert next(key for key in right if right[key] != wrong[key]) == (0, Stage.UP, 1)
