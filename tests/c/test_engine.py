"""The forward pass and the streaming of weights, on small random models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import engine_library as el
import numpy as np
import pytest
from tiny_model import Shape, TinyModel, float_logits, make_model

MakeEngine = Callable[..., el.Engine]
TOKENS = [1, 5, 17, 96, 3, 5, 40, 0, 61, 77, 12]
# Rows of 10,000 bytes over 4,096-byte windows, and of 132 that straddle them.
WIDE = Shape(vocab=133, hidden=132, heads=2, kv_heads=1, head_dim=10, ffn=10000, layers=1)


@pytest.fixture(scope="module", params=["small", "wide", "tied"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(WIDE if request.param == "wide" else None, tied=request.param == "tied")


def tokens_of(model: TinyModel) -> list[int]:
    return [t % model.shape.vocab for t in TOKENS]


def run(make_engine: MakeEngine, model: TinyModel, port: el.Port | None, **config: Any) -> Any:
    engine = make_engine(model, port, **config)
    assert engine.feed(tokens_of(model)) == 0
    assert engine.n_past == len(TOKENS)
    return sorted(engine.stages), engine.logits, engine.engine.logits_exponent


def test_forward_is_a_llama(make_engine: MakeEngine, model: TinyModel) -> None:
    engine = make_engine(model)
    expected = float_logits(model, tokens_of(model))
    for i, token in enumerate(tokens_of(model)):
        assert engine.feed([token]) == 0
        logits = np.ldexp(np.array(engine.logits, float), engine.engine.logits_exponent)
        error = np.abs(logits - expected[i]).max() / np.abs(expected[i]).max()
        assert error < 1e-3, f"position {i}"


@pytest.mark.parametrize(
    "config",
    [
        {"batch": 1},
        {"batch": 3, "chunk": 4096},
        {"batch": 32, "chunk": 8192, "parts": 2, "check_streamed": True},
        {"chunk": 65536, "parts": 8, "context": 20},
        {"chunk": 4096, "parts": 3, "check_streamed": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("port_kind", ["streamed", "mapped", "mixed", "plain", "threads"])
def test_no_way_to_run_changes_a_result(
    make_engine: MakeEngine, model: TinyModel, config: dict[str, Any], port_kind: str
) -> None:
    expected = run(make_engine, model, None)
    port = {
        "streamed": el.Port(model, shuffle_parts=True),
        "mapped": el.Port(model, mapped=lambda _f, _a, _n: True),
        "mixed": el.Port(model, mapped=lambda f, a, _n: (f + a // 4096) % 3 != 0),
        "plain": el.Port(model, prefetches=False),
        "threads": el.Port(model, threads=True, mapped=lambda f, _a, _n: f % 2 == 0),
    }[port_kind]
    assert run(make_engine, model, port, **config) == expected


def test_stages_are_all_reported_in_order(make_engine: MakeEngine) -> None:
    model = make_model()
    engine = make_engine(model, batch=1)
    assert engine.feed([7], logits=False) == 0
    layer = [(layer, stage) for layer in range(2) for stage in range(1, 12)]
    assert [s[1:3] for s in engine.stages] == [(0, 0), *layer]
    engine.stages.clear()
    assert engine.feed([9]) == 0
    assert [s[:3] for s in engine.stages] == [
        (1, a, b) for a, b in [(0, 0), *layer, (0, 12), (0, 13)]
    ]


def test_batch_shares_one_pass_over_the_weights(make_engine: MakeEngine) -> None:
    model = make_model()
    engine = make_engine(model, batch=8)
    assert engine.feed(range(8), logits=False) == 0
    weights = [r for r in engine.port.reads if r[0] != 0]
    assert len(weights) == len(set(weights)) == 18  # nine tensors in each of two layers, no head
    assert engine.engine.stats.tokens == 8


def test_every_window_after_the_first_was_prefetched(make_engine: MakeEngine) -> None:
    model = make_model(WIDE)
    port = el.Port(model, mapped=lambda f, a, _n: f in (3, 8) or (f == 7 and a % 8192 == 0))
    engine = make_engine(model, port, chunk=4096)
    assert engine.feed([1]) == 0
    weights = [r for r in port.reads if r[0] != 0]
    assert port.prefetched == weights[1:]
    assert port.finished == len(port.prefetched)


def test_yield_comes_at_least_each_32_kib(make_engine: MakeEngine) -> None:
    model = make_model(Shape(vocab=4000, hidden=64, layers=1, heads=1, kv_heads=1, head_dim=4))
    for port in (el.Port(model, mapped=lambda _f, _a, _n: True), el.Port(model)):
        engine = make_engine(model, port, chunk=262144)
        assert engine.feed([1]) == 0
        assert port.yields >= 4000 * 64 / 32768 + 10


def test_yield_comes_for_each_token_s_attention(make_engine: MakeEngine) -> None:
    """Of a long context a token alone reads a megabyte of the caches."""
    model = make_model()
    yields = []
    for n in (1, 8):
        engine = make_engine(model, el.Port(model, mapped=lambda _f, _a, _n: True), batch=8)
        assert engine.feed(TOKENS[:n]) == 0
        yields.append(engine.port.yields)
    embedding = 7
    assert yields[1] - yields[0] == embedding + 7 * model.shape.layers


# --- Faults ---------------------------------------------------------------------------------------


def test_a_wrong_byte_is_named(make_engine: MakeEngine, model: TinyModel) -> None:
    up = 8
    at = len(model.files[up][1]) - 3
    port = el.Port(model, flip=(up, at))
    engine = make_engine(model, port, check_streamed=True, parts=2, chunk=8192)
    chunk = at // 4096 * 4096
    assert engine.feed(tokens_of(model)) == el.CRC
    assert engine.fault == (up, chunk, at + 3 - chunk)
    assert engine.n_past == 0
    port.flip = None
    engine.stages.clear()
    assert engine.feed(tokens_of(model)) == 0
    assert sorted(engine.stages) == run(make_engine, model, None)[0]


def test_a_wrong_byte_in_an_embedding_row_is_named(make_engine: MakeEngine) -> None:
    model = make_model(WIDE)
    engine = make_engine(model, el.Port(model, flip=(0, 4097)), check_streamed=True)
    assert engine.feed([2]) == 0
    assert engine.feed([32]) == el.CRC  # bytes 4,224 to 4,356 of the file
    assert engine.fault == (0, 4096, 4096)
    assert engine.n_past == 1
    assert engine.port.reads[-1] == (0, 4096, 4096)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_no_chunk_of_a_window_goes_unchecked(make_engine: MakeEngine, parts: int) -> None:
    model = make_model(Shape(vocab=1600, hidden=24, layers=1))
    head = len(model.files) - 2
    port = el.Port(model)
    engine = make_engine(model, port, check_streamed=True, parts=parts, chunk=65536)
    for at in range(0, 1600 * 24, 4096):
        port.flip = (head, at)
        assert engine.feed([1]) == el.CRC
        assert engine.fault == (head, at, min(4096, 1600 * 24 - at))
    port.flip = None
    assert engine.feed([1]) == 0


def test_without_the_check_a_wrong_byte_passes(make_engine: MakeEngine) -> None:
    model = make_model()
    engine = make_engine(model, el.Port(model, flip=(2, 0)))
    assert engine.feed([1]) == 0
    assert sorted(engine.stages) != sorted(run(make_engine, model, None)[0])[: len(engine.stages)]


@pytest.mark.parametrize(("answer", "error"), [(-5, -5), (-123, -123), (7, el.IO)])
def test_a_failed_read_passes_through_and_can_be_tried_again(
    make_engine: MakeEngine, model: TinyModel, answer: int, error: int
) -> None:
    port = el.Port(model)
    engine = make_engine(model, port, batch=4)
    assert engine.feed(tokens_of(model)[:2]) == 0
    calls = len(port.reads)
    port.fail_read = lambda f, _a, _n: answer if f == 6 and len(port.reads) > calls + 20 else 0
    done = engine.n_past
    assert engine.feed(tokens_of(model)[done:]) == error
    file, at, length = port.reads[-1] if engine.fault[0] == port.reads[-1][0] else port.reads[-2]
    assert engine.fault == (file, at, length)
    port.fail_read = lambda _f, _a, _n: 0
    assert engine.feed(tokens_of(model)[engine.n_past :]) == 0
    assert engine.logits == run(make_engine, model, None)[1]


def test_cancelled_anywhere_it_can_go_on(make_engine: MakeEngine) -> None:
    model = make_model()
    expected = run(make_engine, model, None)[1]
    counter = el.Port(model)
    run(make_engine, model, counter, batch=4)
    for cancel_at in range(1, counter.yields + 1, 7):
        port = el.Port(model, cancel_at=cancel_at)
        engine = make_engine(model, port, batch=4)
        assert engine.feed(TOKENS) == el.CANCELLED
        assert engine.n_past in (0, 4, 8)
        assert engine.feed(TOKENS[engine.n_past :]) == 0
        assert engine.logits == expected


def test_context_and_vocabulary_are_limits(make_engine: MakeEngine) -> None:
    model = make_model()
    engine = make_engine(model, context=6)
    assert engine.feed(TOKENS[:4]) == 0
    before = list(engine.port.reads)
    assert engine.feed(TOKENS[:3]) == el.CONTEXT
    assert engine.feed([1, 97]) == el.ARG
    assert engine.feed([]) == el.ARG
    assert engine.n_past == 4
    assert engine.port.reads == before
    assert engine.feed(TOKENS[4:6]) == 0
    assert engine.logits == run_prefix(make_engine, model, 6)


def run_prefix(make_engine: MakeEngine, model: TinyModel, n: int) -> list[int]:
    engine = make_engine(model)
    assert engine.feed(TOKENS[:n]) == 0
    return engine.logits


def test_rewind_forgets(make_engine: MakeEngine) -> None:
    model = make_model()
    engine = make_engine(model)
    assert engine.feed(TOKENS) == 0
    engine.lib.tllm_rewind(engine.engine, 3)
    assert engine.feed([8, 9]) == 0
    other = make_engine(model)
    assert other.feed([*TOKENS[:3], 8, 9]) == 0
    assert engine.logits == other.logits


# --- Memory ---------------------------------------------------------------------------------------


def test_size_is_exact(make_engine: MakeEngine, model: TinyModel) -> None:
    engine = make_engine(model)
    fast, bulk = engine.size.fast, engine.size.bulk
    assert engine.init(fast, bulk) == 0
    assert engine.init(fast - 1, bulk) == el.FAST
    assert engine.init(fast, bulk - 1) == el.BULK


@pytest.mark.parametrize(
    "config", [{"chunk": 4097}, {"batch": 33}, {"parts": 9}, {"context": 49}], ids=str
)
def test_a_configuration_out_of_range_is_refused(
    make_engine: MakeEngine, config: dict[str, int]
) -> None:
    engine = make_engine(make_model())
    for name, value in config.items():
        setattr(engine.config, name, value)
    assert engine.lib.tllm_size(engine.config, engine.size) == el.ARG
    assert engine.init(1 << 30, 1 << 30) == el.ARG


def test_unaligned_regions_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(make_model())
    engine.fast += 32
    assert engine.init(engine.size.fast, engine.size.bulk) == el.ARG


def test_tiny_llm_fits_the_board(make_engine: MakeEngine) -> None:
    shape = Shape(32000, 192, 1, 2, 1, 96, 1024, 1024)
    engine = make_engine(make_model(shape), parts=2)
    assert engine.size.fast <= 160 * 1024
    assert engine.size.bulk < 1_000_000
