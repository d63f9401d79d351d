"""Sampling against exact integers, probabilities and the published generator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.reference.sampler import ONE, Sampler, SamplingParameters, SplitMix64

Logits = npt.NDArray[np.int32]
GREEDY = SamplingParameters()
WARM = SamplingParameters(temperature=ONE)


def logits(*values: int) -> Logits:
    return np.array(values, dtype=np.int32)


def draws(parameters: SamplingParameters, m: Logits, e: int, n: int) -> npt.NDArray[np.int64]:
    sampler = Sampler(parameters)
    return np.bincount([sampler.sample(m, e) for _ in range(n)], minlength=len(m))


def test_the_generator_gives_the_published_numbers() -> None:
    # The first outputs for the seed 1234567 of the authors' Java 8 class SplittableRandom.
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    generator = SplitMix64(1234567)
    assert [generator.next32() for _ in known] == [value >> 32 for value in known]


def test_temperature_zero_takes_the_greatest_and_draws_nothing() -> None:
    sampler = Sampler(GREEDY)
    assert sampler.sample(logits(-5, 7, 7, 3), -20) == 1
    assert sampler.sample(logits(-7, -7), 100) == 0
    first = sampler.sample(logits(1, 2), 0)
    assert first == 1
    assert sampler._random.state == GREEDY.seed


def test_same_seed_same_tokens() -> None:
    m = logits(*range(100))
    runs = []
    for seed in (5, 5, 6):
        sampler = Sampler(replace(WARM, seed=seed))
        runs.append([sampler.sample(m, -6) for _ in range(50)])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_should(temperature: float) -> None:
    m = logits(0, 2**20, 2**21, -(2**20), 2**21 + 2**19)
    n = 20000
    parameters = replace(WARM, temperature=round(temperature * ONE), seed=1)
    counts = draws(parameters, m, -20, n)
    p = np.exp(m / 2**20 / temperature)
    p /= p.sum()
    # Five standard deviations.
    assert np.all(np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1)


def test_top_k_leaves_the_k_greatest_the_lower_id_first() -> None:
    m = logits(3, 9, 3, 9, 3)
    for k, allowed in (
        (1, {1}),
        (2, {1, 3}),
        (3, {0, 1, 3}),
        (4, {0, 1, 2, 3}),
        (5, set(range(5))),
    ):
        counts = draws(replace(WARM, top_k=k), m, 0, 4000)
        # e^-6 of the others: about ten of each in 4,000.
        assert set(np.flatnonzero(counts).tolist()) == allowed
    for k in (0, 6, 10**9):
        assert np.array_equal(
            draws(replace(WARM, top_k=k), m, 0, 50), draws(replace(WARM, top_k=5), m, 0, 50)
        )


def test_many_equal_candidates_are_taken_from_the_lowest_id_on() -> None:
    values = np.random.default_rng(2).integers(0, 3, 2000)
    m = values.astype(np.int32)
    second = np.flatnonzero(values == 1)[:100].tolist()
    allowed = set(np.flatnonzero(values == 2).tolist()) | set(second)
    counts = draws(replace(WARM, top_k=len(allowed), temperature=6553600), m, 0, 5000)
    found = set(np.flatnonzero(counts).tolist())
    assert found <= allowed
    assert len(found) > 0.99 * len(allowed)


def test_the_running_sum_has_to_exceed_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two candidates of 2^30 each: S = 2^31, target = u / 2.
    for u, token in ((0, 0), (2**31 - 1, 0), (2**31, 1), (2**32 - 1, 1)):
        monkeypatch.setattr(SplitMix64, "next32", lambda _, u=u: u)
        assert Sampler(WARM).sample(logits(5, 5), 0) == token


def test_top_p_takes_the_shortest_prefix_that_reaches_it() -> None:
    m = logits(0, 0, 0, 0)
    for top_p, allowed in (
        (0, 1),
        (ONE // 4, 1),
        (ONE // 4 + 1, 2),
        (ONE // 2, 2),
        (ONE * 3 // 4 + 1, 4),
        (ONE, 4),
        (ONE + 5, 4),
    ):
        counts = draws(replace(WARM, top_p=top_p), m, 0, 200)
        assert np.flatnonzero(counts).tolist() == list(range(allowed))


def test_top_p_is_of_what_top_k_left() -> None:
    m = logits(0, 0, 0, 0)
    counts = draws(replace(WARM, top_k=2, top_p=ONE // 2), m, 0, 100)
    assert np.flatnonzero(counts).tolist() == [0]


@pytest.mark.parametrize("top_p", [ONE - 1, ONE // 2, 1])
def test_the_largest_vocabulary_overflows_nothing(top_p: int) -> None:
    n = 131072
    m = np.zeros(n, dtype=np.int32)
    wanted = max(1, math.ceil(n * top_p / ONE))
    sampler = Sampler(replace(WARM, top_p=top_p, temperature=6553600))
    tokens = [sampler.sample(m, -1024) for _ in range(20)]
    assert all(0 <= token < wanted for token in tokens)
    if wanted > 1000:
        assert max(tokens) > wanted // 2


@given(
    st.lists(st.integers(-(2**30) + 1, 2**30 - 1), min_size=1, max_size=40),
    st.integers(-1100, 200),
    st.sampled_from([655, 40000, ONE, 6553600]),
    st.sampled_from([ONE, 72090, 131072]),
    st.integers(0, 2**64 - 1),
)
def test_any_logits_give_a_token_that_is_possible(
    m: list[int], e: int, temperature: int, penalty: int, seed: int
) -> None:
    parameters = SamplingParameters(temperature, penalty=penalty, seed=seed, top_p=65000)
    token = Sampler(parameters).sample(logits(*m), e, list(range(len(m))))
    assert 0 <= token < len(m)
    behind = (max(m) - m[token]) * 2.0 ** min(e, 100) / (temperature / ONE)
    # With no penalty, none is taken that is e^-21.5 = 2^-31 as likely as the first.
    assert penalty != ONE or behind <= 21.6


def test_penalty_is_for_each_of_the_last_64_tokens_once() -> None:
    m = logits(1000, 900, -100, -150)
    twice = replace(GREEDY, penalty=131072)
    sampler = Sampler(twice)
    assert sampler.sample(m, 0, []) == 0
    assert sampler.sample(m, 0, [0]) == 1
    assert sampler.sample(m, 0, [0, 1]) == 0  # 500 against 450
    assert sampler.sample(m, 0, [0, 0, 0, 1]) == 0
    assert sampler.sample(m, 0, [0, *[3] * 63]) == 1
    assert sampler.sample(m, 0, [0, *[3] * 64]) == 0
    below = logits(-100, -150, -220)
    assert sampler.sample(below, 0, [0]) == 1  # -200
    assert sampler.sample(below, 0, [0, 1]) == 0  # -200, -300 and -220
    assert m.tolist() == [1000, 900, -100, -150]


@given(st.integers(-(2**30) + 1, 2**30 - 1), st.integers(ONE, 2 * ONE))
def test_penalty_divides_or_multiplies(value: int, penalty: int) -> None:
    from host.reference.sampler import _penalise

    found = int(_penalise(np.array([value], dtype=np.int64), [0], penalty)[0])
    real = value / (penalty / ONE) if value > 0 else value * (penalty / ONE)
    # The reciprocal is cut off at 2^-16.
    assert abs(found - real) <= abs(value) * 2.0**-16 + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 654},
        {"temperature": 6553601},
        {"temperature": -1},
        {"penalty": ONE - 1},
        {"penalty": 131073},
        {"top_k": -1},
        {"top_p": -1},
        {"seed": 2**64},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        SamplingParameters(**wrong)
