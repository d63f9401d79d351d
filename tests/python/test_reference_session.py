"""Conversations of the reference: stop tokens, limits, and the end of the context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checkpoint_files import Shape, save_huggingface

from host.checkpoint import load_checkpoint
from host.errors import InputError
from host.package import Package
from host.quantize import quantize_checkpoint
from host.reference.model import ReferenceModel
from host.reference.sampler import ONE, Sampler, SamplingParameters
from host.reference.session import Answer, EndReason, Policy, Session

CONTEXT = 16
BOS, EOS = 1, 2
SHAPE = Shape(max_position_embeddings=CONTEXT, num_hidden_layers=1)


class Scripted(Sampler):
    """Gives tokens from a list, and keeps what the logits' last row and the history were."""

    def __init__(self, *tokens: int) -> None:
        super().__init__(SamplingParameters())
        self.tokens = list(tokens)
        self.histories: list[list[int]] = []
        self.logits: list[bytes] = []

    def sample(self, logits: object, exponent: int, history: object = ()) -> int:
        assert exponent < 0
        assert isinstance(logits, np.ndarray)
        assert isinstance(history, list)
        self.histories.append(list(history))
        self.logits.append(logits.tobytes())
        return self.tokens.pop(0)


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("session")
    quantize_checkpoint(load_checkpoint(save_huggingface(folder / "hf", SHAPE)), folder / "out")
    return Package.open(folder / "out")


def session(package: Package, policy: Policy = Policy.DROP) -> Session:
    assert package.model.add_bos
    return Session(ReferenceModel(package), Letters(), policy)


def test_a_turn_is_its_prompt_and_its_answer(package: Package) -> None:
    talk = session(package)
    talk.prompt("AB")
    shown: list[int] = []
    answer = talk.generate(5, Scripted(70, 71, EOS), shown.append)
    assert answer == Answer((70, 71), EndReason.STOP_TOKEN)
    assert shown == [70, 71]
    assert talk.tokens == [BOS, 65, 66, 70, 71]
    assert talk.n_past == 5
    talk.prompt("C")
    assert talk.generate(2, Scripted(72, BOS)).reason is EndReason.STOP_TOKEN
    assert talk.tokens == [BOS, 65, 66, 70, 71, 67, 72]


def test_an_empty_prompt_begins_no_turn(package: Package) -> None:
    talk = session(package, Policy.STOP)
    talk.prompt("ABC")
    talk.generate(12, Scripted(*range(70, 82)))
    assert len(talk.tokens) == CONTEXT
    talk.prompt("")  # there is no room, and none is wanted
    assert talk.generate(1, Scripted()).reason is EndReason.CONTEXT
    going_on = session(package)
    going_on.prompt("ABC")
    going_on.generate(1, Scripted(70))
    going_on.prompt("")
    going_on.generate(11, Scripted(*range(71, 82)))
    going_on.prompt("D")  # of the one turn there is, the oldest tokens go
    assert going_on.tokens == [BOS, 67, *range(70, 82), 68]


def test_a_limit_ends_the_answer_and_the_next_goes_on(package: Package) -> None:
    talk = session(package)
    talk.prompt("AB")
    assert talk.generate(2, Scripted(70, 71)) == Answer((70, 71), EndReason.LIMIT)
    assert talk.n_past == 4
    assert talk.generate(0, Scripted()) == Answer((), EndReason.LIMIT)
    sampler = Scripted(EOS, 72)
    assert talk.generate(3, sampler).reason is EndReason.STOP_TOKEN
    # After a stop token nothing is left to evaluate, and the same logits are sampled again.
    assert talk.generate(1, sampler) == Answer((72,), EndReason.LIMIT)
    assert sampler.logits[0] == sampler.logits[1]
    assert sampler.histories[0] == sampler.histories[1] == [BOS, 65, 66, 70, 71]


def test_an_answer_needs_a_prompt(package: Package) -> None:
    talk = session(package)
    with pytest.raises(InputError, match="no prompt"):
        talk.generate(1, Scripted(70))
    talk.prompt("")
    assert talk.tokens == [BOS]
    assert talk.generate(1, Scripted(70)).tokens == (70,)


def test_too_long_a_prompt_changes_nothing(package: Package) -> None:
    for policy in Policy:
        talk = session(package, policy)
        with pytest.raises(InputError, match="16 tokens long and the context holds 15"):
            talk.prompt("A" * 15)
        assert talk.tokens == []
        talk.prompt("A" * 14)
        before = talk.tokens
        assert len(before) == 15
        with pytest.raises(InputError, match="Shorten"):
            talk.prompt("A" * 16)
        assert talk.tokens == before


def test_stop_refuses_a_prompt_and_ends_an_answer(package: Package) -> None:
    talk = session(package, Policy.STOP)
    talk.prompt("A" * 10)
    with pytest.raises(InputError, match="context is full"):
        talk.prompt("B" * 5)
    assert len(talk.tokens) == 11
    talk.prompt("BB")
    answer = talk.generate(9, Scripted(70, 71, 72, 73))
    assert answer == Answer((70, 71, 72), EndReason.CONTEXT)
    assert len(talk.tokens) == CONTEXT


def test_drop_removes_the_oldest_turns_before_a_prompt(package: Package) -> None:
    talk = session(package)
    talk.prompt("AA")
    talk.generate(2, Scripted(70, 71))
    talk.prompt("BB")
    talk.generate(2, Scripted(72, 73))
    talk.prompt("CC")
    talk.generate(2, Scripted(74, 75))
    assert len(talk.tokens) == 13
    talk.prompt("DDD")
    assert talk.tokens == [BOS, 66, 66, 72, 73, 67, 67, 74, 75, 68, 68, 68]
    assert talk.n_past == 0
    talk.generate(1, Scripted(76))
    assert talk.n_past == 12


def test_drop_takes_tokens_of_the_last_turn_where_no_other_is_left(package: Package) -> None:
    talk = session(package)
    talk.prompt("ABCDEFGH")
    talk.prompt("I" * 12)
    assert talk.tokens == [BOS, 71, 72, *[73] * 12]
    talk = session(package)
    talk.prompt("ABC")
    talk.prompt("D" * 15)
    assert talk.tokens == [68] * 15


def test_drop_in_an_answer_leaves_three_quarters(package: Package) -> None:
    talk = session(package)
    talk.prompt("ABC")
    talk.generate(2, Scripted(70, 71))
    talk.prompt("DEF")
    answer = talk.generate(9, Scripted(*range(80, 90)))
    assert answer == Answer(tuple(range(80, 89)), EndReason.LIMIT)
    # At 16 tokens the first turn went, and with it the need was met; then two more were made.
    assert talk.tokens == [BOS, 68, 69, 70, *range(80, 89)]
    talk = session(package)
    talk.prompt("ABC")
    talk.generate(14, Scripted(*range(80, 94)))
    # Of the one turn the oldest went, to leave 12: BOS and the last 11; then two more were made.
    assert talk.tokens == [BOS, *range(81, 94)]


def test_what_is_left_is_evaluated_as_if_it_were_new(package: Package) -> None:
    talk = session(package)
    talk.prompt("ABC")
    sampler = Scripted(*range(80, 94), EOS)
    talk.generate(20, sampler)
    fresh = ReferenceModel(package).feed(talk.tokens)
    assert fresh is not None
    assert fresh.m[0].tobytes() == sampler.logits[-1]


def test_a_long_conversation_stays_in_the_context(package: Package) -> None:
    talk = session(package)
    sampler = Sampler(SamplingParameters(temperature=ONE, seed=3))
    made = 0
    for number in range(12):
        talk.prompt("AB" * (number % 5))
        made += len(talk.generate(11, sampler).tokens)
        assert 1 <= len(talk.tokens) <= CONTEXT
        assert talk.tokens[0] == BOS
    assert made > 60


def test_without_bos_none_is_put_in_front(package: Package) -> None:
    model = ReferenceModel(replace(package, model=replace(package.model, add_bos=False)))
    talk = Session(model, Letters())
    talk.prompt("AB")
    assert talk.tokens == [65, 66]
    talk.prompt("C" * 13)
    talk.prompt("D")
    assert talk.tokens == [*[67] * 13, 68]
