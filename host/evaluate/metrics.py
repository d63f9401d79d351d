"""How far one model's predictions are from another's, and how well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from host.errors import InputError
from host.evaluate.float_twin import FloatModel
from host.reference.model import ReferenceModel

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]

ROWS_AT_ONCE = 256
"""Positions whose logits are held at a time."""
_MOST_NATS = 709  # whose exponential is a float64


class Predictor(Protocol):
    """A model that can be asked for the logits of a window of tokens."""

    def predict(self, window: Ids) -> Iterator[Floats]:
        """Yields (up to `ROWS_AT_ONCE`, vocab) logits, in all a row for each token of a window."""


class FloatPredictor:
    """Float arithmetic."""

    def __init__(self, model: FloatModel) -> None:
        self._model = model

    def predict(self, window: Ids) -> Iterator[Floats]:
        """Yields the logits, see `Predictor`."""
        states = self._model.states(window)
        for start in range(0, len(window), ROWS_AT_ONCE):
            yield self._model.head(states[start : start + ROWS_AT_ONCE])


class IntegerPredictor:
    """The engine's arithmetic, by its reference."""

    def __init__(self, model: ReferenceModel) -> None:
        self._model = model

    def predict(self, window: Ids) -> Iterator[Floats]:
        """Yields the logits, see `Predictor`."""
        self._model.rewind(0)
        for start in range(0, len(window), ROWS_AT_ONCE):
            logits = self._model.feed(window[start : start + ROWS_AT_ONCE], logits="all")
            if logits is None:
                raise AssertionError("logits were asked for")
            yield np.ldexp(logits.m.astype(np.float32), logits.e[:, np.newaxis].astype(np.int32))


@dataclass(frozen=True)
class Window:
    """Tokens and what follows each of them.

    Attributes:
        inputs: (n,) ids, BOS in front where the model was trained so.
        targets: (n,) ids; targets[i] follows inputs[i].
    """

    inputs: Ids
    targets: Ids


def cut_windows(
    tokens: Sequence[int], bos: int | None, positions: int, length: int
) -> list[Window]:
    """Cuts a text into windows, so that each token is predicted once.

    Args:
        tokens: The text, without BOS.
        bos: What each window begins with; None where it begins with a token of the text, which is
            then the target of the window before, and the first of all is no target.
        positions: How many tokens to predict; fewer where the text is shorter.
        length: Tokens of a window.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    if bos is None:
        ids = ids[: positions + 1]
        cuts = range(0, max(len(ids) - 1, 0), length)
        return [
            Window(ids[at : at + length][: len(ids) - 1 - at], ids[at + 1 :][:length])
            for at in cuts
        ]
    ids = ids[:positions]
    return [
        Window(np.concatenate([[bos], ids[at : at + length][:-1]]), ids[at : at + length])
        for at in range(0, len(ids), length)
    ]


@dataclass
class _Sums:
    kl: float = 0.0
    agreed: int = 0
    log_loss: float = 0.0


@dataclass(frozen=True)
class Scores:
    """What one model made of a text.

    Attributes:
        mean_kl: Mean Kullback-Leibler divergence of its distribution from the float model's, nats.
        top1: Share of the positions where both hold the same token the most likely.
        perplexity: Of the text.
        bits_per_byte: Of the text.
    """

    mean_kl: float
    top1: float
    perplexity: float
    bits_per_byte: float


@dataclass
class Comparison:
    """Runs models side by side over windows of a text.

    Args:
        base: What the others are compared with.
        others: The models, by name.
    """

    base: Predictor
    others: dict[str, Predictor]
    positions: int = 0
    _base: _Sums = field(default_factory=_Sums)
    _sums: dict[str, _Sums] = field(default_factory=dict)

    @np.errstate(over="ignore", invalid="ignore")  # `scores` refuses what comes of it
    def add(self, window: Window) -> None:
        """Evaluates one more window."""
        start = 0
        predictions = [self.base.predict(window.inputs)]
        predictions += [other.predict(window.inputs) for other in self.others.values()]
        for base, *others in zip(*predictions, strict=True):
            targets = window.targets[start : start + len(base)]
            start += len(base)
            best = np.argmax(base, axis=1)
            base, base_norm = _shifted(base)
            p = np.exp(base - base_norm[:, np.newaxis])
            self._base.log_loss += _log_loss(base, base_norm, targets)
            for name, logits in zip(self.others, others, strict=True):
                sums = self._sums.setdefault(name, _Sums())
                sums.agreed += int(np.count_nonzero(np.argmax(logits, axis=1) == best))
                other, other_norm = _shifted(logits)
                # sum p (log p - log q), each log a shifted logit less its row's log-sum.
                sums.kl += float(np.sum(p * (base - other), dtype=np.float64))
                sums.kl += float(np.sum(other_norm - base_norm, dtype=np.float64))
                sums.log_loss += _log_loss(other, other_norm, targets)
            self.positions += len(base)

    def base_scores(self, text_bytes: int) -> Scores:
        """Returns the scores of the base, whose distance from itself is none.

        Args:
            text_bytes: UTF-8 bytes of the targets evaluated.

        Raises:
            InputError: They are beyond what a float holds.
        """
        return self._scores(_Sums(0.0, self.positions, self._base.log_loss), text_bytes)

    def scores(self, name: str, text_bytes: int) -> Scores:
        """Returns the scores of one of the others, as `base_scores`."""
        return self._scores(self._sums[name], text_bytes)

    def _scores(self, sums: _Sums, text_bytes: int) -> Scores:
        loss = sums.log_loss / self.positions
        if not (loss < _MOST_NATS and math.isfinite(sums.kl)):
            raise InputError(
                "The model predicts this text worse than a float can say",
                "Check that its weights are those of a trained model",
            )
        return Scores(
            mean_kl=sums.kl / self.positions,
            top1=sums.agreed / self.positions,
            perplexity=math.exp(loss),
            bits_per_byte=sums.log_loss / math.log(2) / text_bytes,
        )


def _shifted(logits: Floats) -> tuple[Floats, Floats]:
    """Returns the logits less each row's greatest, and the log of each row's sum of exp."""
    shifted = logits - np.max(logits, axis=1, keepdims=True)
    total = np.sum(np.exp(shifted), axis=1, dtype=np.float64)
    norm: Floats = np.log(total).astype(np.float32)
    return shifted, norm


def _log_loss(shifted: Floats, norm: Floats, targets: Ids) -> float:
    log_p = shifted[np.arange(len(targets)), targets] - norm
    return -float(np.sum(log_p, dtype=np.float64))
