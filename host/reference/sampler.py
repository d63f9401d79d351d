"""Sampling by docs/NUMERICS.md section 5: integers from the logits to the token id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from host.reference.fixed import Ints, exp2n, rsr, sat32, scale
from host.reference.tables import LOG2E_E, LOG2E_M

ONE: Final = 65536
"""1.0 as Q16."""

PENALTY_WINDOW: Final = 64
_MASK64: Final = 2**64 - 1


@dataclass(frozen=True)
class SamplingParameters:
    """How the next token is chosen.

    Attributes:
        temperature: Q16; 0 for the most likely token, else 655 (0.01) to 6553600 (100).
        top_k: Number of candidates, 0 for no limit.
        top_p: Q16 share of the probability that the candidates make up; 65536 or more for all.
        penalty: Q16 repetition penalty, 65536 (none) to 131072.
        seed: 64 bits.
    """

    temperature: int = 0
    top_k: int = 0
    top_p: int = ONE
    penalty: int = ONE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 655 <= self.temperature <= 6553600:
            raise ValueError(f"Temperature {self.temperature} is neither 0 nor in 655..6553600")
        if not ONE <= self.penalty <= 2 * ONE:
            raise ValueError(f"Penalty {self.penalty} is not in 65536..131072")
        if self.top_k < 0 or self.top_p < 0:
            raise ValueError("top_k and top_p are not negative")
        if not 0 <= self.seed <= _MASK64:
            raise ValueError("The seed has 64 bits")


class SplitMix64:
    """The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators"."""

    def __init__(self, seed: int) -> None:
        self.state = seed & _MASK64

    def next32(self) -> int:
        """Returns the upper 32 bits of the next output."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        return (z ^ (z >> 31)) >> 32


class Sampler:
    """Chooses tokens; draws one random number for each unless the temperature is 0."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self._random = SplitMix64(parameters.seed)

    def sample(
        self, logits: npt.NDArray[np.int32], exponent: int, history: Sequence[int] = ()
    ) -> int:
        """Returns the next token's id.

        Args:
            logits: (vocab,) mantissas, |m| < 2^30.
            exponent: Their common exponent.
            history: The session's tokens, prompts and answers; the last 64 are penalised.
        """
        given = self.parameters
        m = _penalise(logits.astype(np.int64), history, given.penalty)
        if given.temperature == 0:
            return int(np.argmax(m))
        order = np.argsort(-m, kind="stable")
        if 0 < given.top_k < len(order):
            order = order[: given.top_k]
        p = _likelihoods(m[order], exponent, given.temperature)
        # At most 131072 * 2^30 = 2^47.
        running = np.cumsum(p)
        if given.top_p < ONE:
            # sum * 2^16 <= 2^63 needs the sign bit.
            reached = running.astype(np.uint64) << np.uint64(16) >= np.uint64(
                given.top_p * int(running[-1])
            )
            running = running[: int(np.argmax(reached)) + 1]
        target = ((int(running[-1]) >> 16) * self._random.next32()) >> 16
        return int(order[np.searchsorted(running, target, side="right")])


def _penalise(m: Ints, history: Sequence[int], penalty: int) -> Ints:
    if penalty != ONE:
        recent = np.unique(np.asarray(history[-PENALTY_WINDOW:], dtype=np.int64))
        l = m[recent]  # noqa: E741 - the specification's name
        m[recent] = np.where(
            l > 0, rsr(l * ((1 << 32) // penalty), 16), sat32(rsr(l * penalty, 16))
        )
    return m


def _likelihoods(m: Ints, exponent: int, temperature: int) -> Ints:
    """Returns the candidates' 2^-d as Q30; m[0] is the greatest."""
    # Differences are below 2^32, LOG2E below 2^24; then below 2^31 times below 2^23.
    z = scale((m[0] - m) * LOG2E_M, exponent + LOG2E_E + 16)
    d = rsr(z * ((1 << 32) // temperature), 16)
    return exp2n(np.minimum(d, 2**32 - 1))
