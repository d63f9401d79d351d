"""Sessions: docs/NUMERICS.md section 7."""

from __future__ import annotations

from collections.abc import Callable

import engine_library as el
import pytest
from engine_library import (
    DROP,
    END_CANCELLED,
    END_CONTEXT,
    END_STOP_TOKEN,
    STOP,
    TOO_LONG,
    Session,
)
from tiny_model import Shape, TinyModel, make_model

MakeEngine = Callable[..., el.Engine]
SHAPE = Shape(layers=1, context=16)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model(SHAPE)


def greedy(make_engine: MakeEngine, model: TinyModel, tokens: list[int]) -> int:
    engine = make_engine(model)
    assert engine.feed(tokens) == 0
    return engine.logits.index(max(engine.logits))


def test_an_answer_is_greedy_decoding(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model))
    assert session.prompt(50, 60, 70) == 0
    assert session.held == [1, 50, 60, 70]
    for _ in range(5):
        expected = greedy(make_engine, model, session.held)
        assert expected not in (1, 2)
        assert session.next() == (1, expected, 0)
        assert session.held[-1] == expected
        assert session.engine.n_past == len(session.held) - 1


def test_bos_only_in_front_of_an_empty_list(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model))
    assert session.prompt(5) == 0
    assert session.prompt(6, 7) == 0
    assert session.held == [1, 5, 6, 7]
    assert session.turns == [0, 2]
    session.engine.lib.tllm_session_reset(session.struct)
    assert session.prompt(8) == 0
    assert session.held == [1, 8]


def test_a_model_without_bos(make_engine: MakeEngine) -> None:
    model = make_model(SHAPE)
    model.add_bos = False
    session = Session(make_engine(model))
    assert session.prompt(5, 6) == 0
    assert session.held == [5, 6]


@pytest.mark.parametrize("stop", ["eos", "bos"])
def test_a_stop_token_ends_the_answer_and_is_not_kept(
    make_engine: MakeEngine, model: TinyModel, stop: str
) -> None:
    sampled = greedy(make_engine, model, [1, 5, 6])
    ending = make_model(SHAPE)
    ending.add_bos = False
    setattr(ending, stop, sampled)
    session = Session(make_engine(ending))
    assert session.prompt(1, 5, 6) == 0
    for _ in range(2):  # and again: nothing is left to evaluate, the answer is the same
        assert session.next() == (0, 999, END_STOP_TOKEN)
        assert session.held == [1, 5, 6]


def test_a_prompt_longer_than_the_context_is_refused(
    make_engine: MakeEngine, model: TinyModel
) -> None:
    for policy in (STOP, DROP):
        session = Session(make_engine(model), policy)
        assert session.prompt(*[4] * 15) == TOO_LONG  # and BOS: 16 > 15
        assert session.held == []
        assert session.prompt(*[4] * 14) == 0
        assert session.prompt(*[4] * 16) == TOO_LONG
        assert session.prompt(97) == el.ARG
        assert len(session.held) == 15


def test_stop_refuses_what_does_not_fit(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model))
    assert session.prompt(*[4] * 10) == 0
    assert session.prompt(*[5] * 5) == el.CONTEXT
    assert len(session.held) == 11
    assert session.prompt(*[5] * 4) == 0


def test_an_empty_prompt_begins_no_turn(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model))
    assert session.prompt(*range(20, 33)) == 0
    assert session.next()[0] == 1
    assert session.prompt() == 0
    assert session.next()[0] == 1
    assert session.turns == [0]
    assert len(session.held) == 16
    assert session.prompt() == 0  # there is no room, and none is wanted
    assert session.next() == (0, 999, END_CONTEXT)


def test_stop_ends_an_answer_where_the_context_ends(
    make_engine: MakeEngine, model: TinyModel
) -> None:
    session = Session(make_engine(model))
    assert session.prompt(*range(20, 33)) == 0
    assert session.next()[0] == session.next()[0] == 1
    assert len(session.held) == 16
    assert session.next() == (0, 999, END_CONTEXT)


def test_drop_removes_whole_turns_first(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model), DROP)
    assert session.prompt(10, 11, 12) == 0
    assert session.prompt(20, 21, 22, 23) == 0
    assert session.prompt(30, 31, 32, 33) == 0
    assert session.turns == [0, 4, 8]
    assert session.prompt(40, 41, 42, 43) == 0  # 12 + 4 > 15: at most 16 - 5 = 11 may stay
    assert session.held == [1, 20, 21, 22, 23, 30, 31, 32, 33, 40, 41, 42, 43]
    assert session.turns == [0, 5, 9]
    assert session.prompt(*range(50, 60)) == 0  # at most 5: two turns go, the third just fits
    assert session.held == [1, 40, 41, 42, 43, *range(50, 60)]
    assert session.turns == [0, 5]


def test_drop_cuts_the_last_turn(make_engine: MakeEngine, model: TinyModel) -> None:
    session = Session(make_engine(model), DROP)
    assert session.prompt(*range(20, 34)) == 0
    answer, token, _ = session.next()
    assert answer == 1
    assert len(session.held) == 16
    expected = [1, *range(24, 34), token]  # at most 16 - 16 / 4 = 12
    following = greedy(make_engine, model, expected)
    assert session.next() == (1, following, 0)
    assert session.held == [*expected, following]
    assert session.turns == [0]


def test_a_prompt_that_leaves_room_for_nothing_else(
    make_engine: MakeEngine, model: TinyModel
) -> None:
    session = Session(make_engine(model), DROP)
    assert session.prompt(5, 6) == 0
    assert session.prompt(*range(20, 34)) == 0  # 14: one token may stay, BOS
    assert session.held == [1, *range(20, 34)]
    assert session.prompt(*range(40, 55)) == 0  # 15: none may
    assert session.held == [*range(40, 55)]
    assert session.turns == [0]
    assert session.next()[0] == 1


def test_cancelled_and_failed_it_goes_on(make_engine: MakeEngine, model: TinyModel) -> None:
    expected = greedy(make_engine, model, [1, *range(20, 32)])
    port = el.Port(model, cancel_at=15)
    session = Session(make_engine(model, port, batch=2))
    assert session.prompt(*range(20, 32)) == 0
    assert session.next() == (0, 999, END_CANCELLED)
    assert 0 < session.engine.n_past < 12
    port.fail_read = lambda _f, _a, _n: -321
    assert session.next()[0] == -321
    port.fail_read = lambda _f, _a, _n: 0
    assert session.next() == (1, expected, 0)


def test_cancelled_while_it_samples_it_goes_on(make_engine: MakeEngine, model: TinyModel) -> None:
    def session(cancel_at: int = -1) -> Session:
        session = Session(make_engine(model, el.Port(model, cancel_at=cancel_at)))
        session.struct.sampling.temperature = 131072
        session.struct.sampling.top_p = 60000
        session.struct.rng.state = 3
        assert session.prompt(3, 4) == 0
        return session

    clean = session()
    expected = [clean.next() for _ in range(4)]
    evaluation = clean.engine.port.yields
    alone = Session(make_engine(model, el.Port(model)))
    assert alone.engine.feed([1, 3, 4]) == 0
    sampling = alone.engine.port.yields + 1  # the first yield after the prompt's evaluation
    assert sampling < evaluation
    stopped = session(sampling)
    assert stopped.next() == (0, 999, END_CANCELLED)
    assert stopped.engine.n_past == 3
    assert [stopped.next() for _ in range(4)] == expected


def test_nothing_to_say_to_nothing(make_engine: MakeEngine, model: TinyModel) -> None:
    assert Session(make_engine(model)).next()[0] == el.ARG


def test_same_seed_same_tokens(make_engine: MakeEngine, model: TinyModel) -> None:
    def answer(seed: int) -> list[int]:
        session = Session(make_engine(model))
        session.struct.sampling.temperature = 131072
        session.struct.sampling.penalty = 80000
        session.struct.rng.state = seed
        assert session.prompt(3, 4) == 0
        for _ in range(8):
            session.next()
        return session.held

    assert answer(7) == answer(7)
    assert len({tuple(answer(seed)) for seed in range(6)}) > 1
