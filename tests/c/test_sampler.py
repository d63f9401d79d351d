"""The sampler against docs/NUMERICS.md section 5, read once more, word by word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import engine_library as el
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import Shape, make_model

VOCAB = 97
OFF = {"top_k": 0, "top_p": 65536, "penalty": 65536}
LOG2E_M, LOG2E_E = 12102203, -23


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., el.Engine]) -> el.Engine:
    return make_engine(make_model(Shape(layers=1)))


def sample(
    engine: el.Engine,
    logits: list[int],
    exponent: int,
    seed: int,
    history: tuple[int, ...] = (),
    **sampling: int,
) -> tuple[int, int]:
    """(token or error, state of the generator after)."""
    ffi, lib = engine.ffi, engine.lib
    ffi.memmove(engine.engine.logits, np.array(logits, np.int32), 4 * len(logits))
    engine.engine.logits_exponent = exponent
    rng = ffi.new("struct tllm_rng *", {"state": seed})
    parameters = ffi.new("struct tllm_sampling *", {**OFF, **sampling})
    token = lib.tllm_sample(engine.engine, parameters, rng, list(history), len(history))
    return int(token), int(rng.state)


def rsr(v: int, n: int) -> int:
    return v if n == 0 else 0 if n >= 63 else (v + (1 << (n - 1))) >> n


def scale(v: int, s: int) -> int:
    r = rsr(v, -s) if s <= 0 else v << s
    return max(-(2**31 - 1), min(2**31 - 1, r))


def draw(state: int) -> tuple[int, int]:
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 32, state


def expected(
    engine: el.Engine,
    logits: list[int],
    e: int,
    seed: int,
    history: tuple[int, ...],
    temperature: int,
    top_k: int,
    top_p: int,
    penalty: int,
) -> tuple[int, int]:
    l = list(logits)  # noqa: E741
    if penalty != 65536:
        for t in set(history[-64:]):
            if l[t] > 0:
                l[t] = rsr(l[t] * (2**32 // penalty), 16)
            else:
                l[t] = max(-(2**31 - 1), rsr(l[t] * penalty, 16))
    order = sorted(range(len(l)), key=lambda i: (-l[i], i))
    if temperature == 0:
        return order[0], seed
    best, inverse = l[order[0]], 2**32 // temperature
    p = []
    for i in order:
        z = scale((best - l[i]) * LOG2E_M, e + LOG2E_E + 16)
        p.append(int(engine.lib.tllm_exp2n(min(2**32 - 1, rsr(z * inverse, 16)))))
    k = top_k if 0 < top_k < len(l) else len(l)
    p = p[:k]
    if top_p < 65536:
        total, n = sum(p), 1
        while sum(p[:n]) * 65536 < top_p * total:
            n += 1
        p = p[:n]
    u, state = draw(seed)
    target = ((sum(p) >> 16) * u) >> 16
    running = 0
    for i, mass in zip(order, p, strict=False):
        running += mass
        if running > target:
            return i, state
    raise AssertionError("the target is beyond the sum")


TEMPERATURES = st.one_of(
    st.just(0), st.just(65536), st.sampled_from([655, 6553600]), st.integers(655, 200000)
)


@settings(max_examples=600)
@given(
    data=st.data(),
    e=st.integers(-40, -8),
    seed=st.integers(0, 2**64 - 1),
    temperature=TEMPERATURES,
    top_k=st.one_of(st.just(0), st.integers(1, 110)),
    top_p=st.one_of(st.just(65536), st.integers(0, 65536)),
    penalty=st.one_of(st.just(65536), st.integers(65536, 131072)),
    history=st.lists(st.integers(0, VOCAB - 1), max_size=90).map(tuple),
)
def test_sample(engine: el.Engine, data: st.DataObject, e: int, seed: int, **kw: Any) -> None:
    spread = data.draw(st.sampled_from([0, 3, 1000, 2**20, 2**28, 2**30 - 1]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    logits = rng.integers(-spread, spread + 1, VOCAB).tolist()
    history = kw.pop("history")
    assert sample(engine, logits, e, seed, history, **kw) == expected(
        engine, logits, e, seed, history, **kw
    )


def test_greedy_takes_the_lowest_id_on_ties_and_draws_nothing(engine: el.Engine) -> None:
    logits = [0] * VOCAB
    logits[60] = logits[11] = logits[90] = 5
    assert sample(engine, logits, -20, 42, temperature=0) == (11, 42)


def test_only_the_last_64_tokens_are_penalised(engine: el.Engine) -> None:
    logits = [0] * VOCAB
    logits[9], logits[8] = 1000, 900
    old = (9, *[3] * 64)
    assert sample(engine, logits, -20, 1, old, temperature=0, penalty=131072)[0] == 9
    assert sample(engine, logits, -20, 1, old[:64], temperature=0, penalty=131072)[0] == 8


def seed_that_draws(u: int) -> int:
    """SplitMix64 backwards: the seed whose first output has u as its upper half, 0 as its lower."""

    def unshift(z: int, n: int) -> int:
        for _ in range(64 // n + 1):
            z = original ^ (z >> n)
        return z

    original = u << 32
    original = unshift(original, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    original = unshift(original, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return (unshift(original, 30) - 0x9E3779B97F4A7C15) % 2**64


@pytest.mark.parametrize(("u", "token"), [(0, 4), (2**31 - 1, 4), (2**31, 9), (2**32 - 1, 9)])
def test_the_sum_must_exceed_the_target(engine: el.Engine, u: int, token: int) -> None:
    """Of two equal masses of 2^30 the first has the targets below 2^30, the other the rest."""
    logits = [-(2**29)] * VOCAB
    logits[4] = logits[9] = 2**29
    seed = seed_that_draws(u)
    assert draw(seed)[0] == u
    assert sample(engine, logits, -20, seed, temperature=65536)[0] == token


def test_frequencies_are_those_of_softmax(engine: el.Engine) -> None:
    logits = [-(2**29)] * VOCAB
    for i, value in enumerate([3.0, 2.0, 1.0, 0.0]):
        logits[10 * i] = round(value * 2**20)
    draws = 4000
    counts = Counter(
        sample(engine, logits, -20, seed * 977, temperature=131072)[0] for seed in range(draws)
    )
    weights = [math.exp(v / 2) for v in (3, 2, 1, 0)]
    for i, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs(counts[10 * i] - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


def test_yield_comes_for_each_1024_tokens_in_order(make_engine: Callable[..., el.Engine]) -> None:
    """A stop costs the logits, and nothing of the generator."""
    model = make_model(Shape(vocab=5000, layers=1))
    logits = [5000 - i for i in range(5000)]

    def sampled(engine: el.Engine) -> tuple[int, int]:
        return sample(engine, logits, -30, 7, temperature=6553600, top_p=65535)

    engine = make_engine(model)
    token, state = sampled(engine)
    assert token >= 0
    assert state == draw(7)[1]
    assert engine.port.yields == 5
    for cancel_at in range(1, 6):
        port = el.Port(model, cancel_at=cancel_at)
        engine = make_engine(model, port)
        assert sampled(engine) == (el.CANCELLED, 7)
        assert sampled(engine) == (token, state)


def test_generator_is_splitmix64(engine: el.Engine) -> None:
    """The published first outputs for seed 1234567 (Vigna's splitmix64.c), upper halves."""
    rng = engine.ffi.new("struct tllm_rng *", {"state": 1234567})
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [engine.lib.tllm_rng_next(rng) for _ in published] == [v >> 32 for v in published]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 654},
        {"temperature": 6553601},
        {"temperature": 65536, "penalty": 65535},
        {"temperature": 65536, "penalty": 131073},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(engine: el.Engine, sampling: dict[str, int]) -> None:
    assert sample(engine, [0] * VOCAB, -20, 5, (), **sampling) == (el.ARG, 5)


def test_history_beyond_the_vocabulary_is_refused(engine: el.Engine) -> None:
    answer = sample(engine, [0] * VOCAB, -20, 5, (1, VOCAB), temperature=0, penalty=70000)
    assert answer == (el.ARG, 5)
