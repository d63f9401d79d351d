"""A conversation by docs/NUMERICS.md section 7: prompts, answers and the end of the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from host.errors import InputError
from host.reference.model import Logits, ReferenceModel
from host.reference.sampler import Sampler


class Encoder(Protocol):
    """The part of a tokenizer that a session needs."""

    def encode(self, text: str) -> list[int]:
        """Returns the text's tokens, without BOS."""


class Policy(Enum):
    """What happens where the context ends."""

    STOP = "stop"
    DROP = "drop"


class EndReason(Enum):
    """Why an answer ended."""

    STOP_TOKEN = "stop token"  # noqa: S105 - no password
    LIMIT = "limit"
    CONTEXT = "context"


@dataclass(frozen=True)
class Answer:
    """What was generated: the tokens shown, the stop token not among them."""

    tokens: tuple[int, ...]
    reason: EndReason


class Session:
    """A list of tokens, the first ``model.n_past`` of which are evaluated.

    Args:
        model: Used by this session alone, at position 0.
        encoder: Encodes prompts; not needed where only `prompt_tokens` is used.
        policy: What to do where the context ends.
    """

    def __init__(
        self,
        model: ReferenceModel,
        encoder: Encoder | None = None,
        policy: Policy = Policy.DROP,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._policy = policy
        self._turns: list[list[int]] = []
        self._logits: Logits | None = None
        model.rewind(0)

    @property
    def tokens(self) -> list[int]:
        """All tokens held, prompts and answers, BOS included."""
        return [token for turn in self._turns for token in turn]

    @property
    def n_past(self) -> int:
        """How many of the tokens are evaluated."""
        return self._model.n_past

    def prompt(self, text: str) -> None:
        """Begins a turn with a text.

        Raises:
            InputError: It is longer than the context, or, where nothing may be dropped, than what
                is left of it. The session is unchanged.
        """
        if self._encoder is None:
            raise ValueError("This session has no tokenizer")
        self.prompt_tokens(self._encoder.encode(text))

    def prompt_tokens(self, tokens: list[int]) -> None:
        """Begins a turn with tokens, as `prompt`; BOS is put in front as there.

        No tokens and no BOS begin no turn: the answer before them goes on.
        """
        facts = self._model.facts
        held = self.tokens
        if not held and facts.add_bos and facts.bos >= 0:
            tokens = [facts.bos, *tokens]
        if not tokens:
            return
        room = facts.context - 1
        if len(tokens) > room:
            raise InputError(
                f"The prompt is {len(tokens)} tokens long and the context holds {room}",
                "Shorten the prompt",
            )
        if len(held) + len(tokens) > room:
            if self._policy is Policy.STOP:
                raise InputError(
                    "The context is full", "Reset the conversation, or let old turns be dropped"
                )
            self._drop(len(tokens) + 1)
        self._turns.append(list(tokens))

    def generate(
        self, limit: int, sampler: Sampler, show: Callable[[int], None] | None = None
    ) -> Answer:
        """Answers with at most limit tokens, each shown as it is made.

        Raises:
            InputError: There is nothing to go on from.
        """
        facts = self._model.facts
        if not any(self._turns):
            raise InputError("There is no prompt to go on from", "Begin with a prompt")
        shown: list[int] = []
        while len(shown) < limit:
            if len(self.tokens) == facts.context:
                if self._policy is Policy.STOP:
                    return Answer(tuple(shown), EndReason.CONTEXT)
                self._drop(max(1, facts.context // 4))
            token = self._next(sampler)
            if token in (facts.bos, facts.eos):
                return Answer(tuple(shown), EndReason.STOP_TOKEN)
            self._turns[-1].append(token)
            shown.append(token)
            if show is not None:
                show(token)
        return Answer(tuple(shown), EndReason.LIMIT)

    def _next(self, sampler: Sampler) -> int:
        held = self.tokens
        if len(held) > self._model.n_past:
            self._logits = self._model.feed(held[self._model.n_past :])
        # Else the last answer ended with a stop token, and its logits still hold.
        if self._logits is None:
            raise AssertionError("evaluated tokens without logits")
        return sampler.sample(self._logits.m[0], int(self._logits.e[0]), held)

    def _drop(self, need: int) -> None:
        """Makes the list at most context - need long, oldest turns first, and n_past 0."""
        facts = self._model.facts
        room = facts.context - need
        turns = [list(turn) for turn in self._turns]
        front = [facts.bos] if turns[0][:1] == [facts.bos] and room > 0 else []
        if turns[0][:1] == [facts.bos]:
            del turns[0][0]
        while len(turns) > 1 and len(front) + sum(map(len, turns)) > room:
            del turns[0]
        excess = len(front) + sum(map(len, turns)) - room
        del turns[0][: max(excess, 0)]
        turns[0][:0] = front
        self._turns = turns
        self._model.rewind(0)
