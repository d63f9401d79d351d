"""`host verify`: the board against the reference, bit for bit.

For every position the board reports a CRC-32 of each stage's activations, and the reference
computes the same from the package's files alone. Then the two encode, decode and sample. Where they
differ, the position is evaluated once more and the activations themselves are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from host.board.chat import Sampling, check_ready
from host.errors import BoardError, CheckFailed, InputError, LinkError
from host.files import read_file
from host.link.client import Device, stages_of
from host.link.frames import MAX_PAYLOAD

if TYPE_CHECKING:
    from host.package import Package
    from host.reference.model import ReferenceModel
    from host.tokenizer import Tokenizer

TEXT = (
    "Once upon a time, there was a little girl named Lily. She liked to play outside in the park. "
    "One day she saw a big, red ball.\n\nÀ côté — 10 °C, 漢字, 🙂!\n"
)
_BATCH = 8
_AHEAD = 4 * _BATCH
_GENERATED = 16
_PARTS, _PART_BYTES = 8, 960  # of text: as much as a frame carries both ways
_MAX_TEXT_BYTES = 1 << 30


@dataclass
class Verified:
    """What was compared, and found equal."""

    positions: int = 0
    stages: int = 0
    sampled: int = 0
    texts: int = 0
    runs: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """The result in a line."""
        return (
            f"{self.positions} positions, all equal ({self.stages} stages, {self.sampled} sampled "
            f"tokens, {self.texts} texts)."
        )


def verify(
    device: Device,
    package: Package,
    *,
    positions: int = 128,
    text: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Compares a board with the reference.

    Args:
        device: The board.
        package: What it should be running.
        positions: Positions to compare: half of them of text, fed in batches, half of them of
            random tokens, fed one by one; in runs of up to the context's length.
        text: What to feed; a short one of our own where omitted.
        seed: Of the random tokens and the sampling.
        progress: Called with the positions done.

    Raises:
        CheckFailed: Something differs; the message names the first stage, layer and position.
        BoardError: The board runs another package, or none.
        UsageError: The seed is beyond 64 bits.
    """
    from host.reference.model import ReferenceModel

    sampling = Sampling(seed=seed)
    info = device.info()
    check_ready(info)
    expected = package.model.fingerprint.hex()
    if info.get("fingerprint") != expected:
        raise BoardError(
            f"The board runs another model: {info.get('model')} "
            f"({str(info.get('fingerprint'))[:8]}), not {package.model.name} ({expected[:8]})",
            "Name that package, or put this one on the board with `host upload`",
        )
    context = int(info.get("context", 0))
    if positions < 1:
        raise InputError("There is nothing to compare in 0 positions", "Give --positions 1 or more")
    model = ReferenceModel(package)
    run = _Run(device, model, min(context, package.model.context), Verified(), progress)
    tokenizer = _tokenizer(package)
    of_text = _text_tokens(
        package, tokenizer, TEXT if text is None else text, positions - positions // 2
    )
    random = np.random.default_rng(seed)
    of_chance = random.integers(0, package.model.vocab, positions // 2).tolist()
    run.sequence("text, in batches", of_text, _BATCH)
    run.sequence("random tokens, one by one", of_chance, 1)
    _compare_text(device, tokenizer, TEXT if text is None else text, run.done)
    _compare_sampling(run, of_text[: min(_GENERATED, run.context - 1)], seed)
    _compare_generation(run, tokenizer, sampling)
    return run.done


@dataclass
class _Run:
    device: Device
    model: ReferenceModel
    context: int
    done: Verified
    progress: Callable[[int], None]

    def sequence(self, how: str, tokens: Sequence[int], batch: int) -> None:
        """Compares every stage of every token, in runs of at most the context's length."""
        for start in range(0, len(tokens), self.context):
            self._one_run(how, list(tokens[start : start + self.context]), batch)

    def _one_run(self, how: str, tokens: list[int], batch: int) -> None:
        self.device.session_reset()
        self.model.rewind(0)
        layers = self.model.facts.layers
        stages = 4 * batch * (2 + len(stages_of(layers, head=True))) <= MAX_PAYLOAD
        expected: dict[tuple[int, int, int], int] = {}
        for at in range(0, len(tokens), batch):
            part = tokens[at : at + batch]
            if at % _AHEAD == 0:
                # The reference is quicker with many at once, and its results do not depend on it.
                expected = self._expect(tokens[at : at + _AHEAD])
            if batch > 1:
                # As prompts are fed: one pass over the weights, the head for the last alone.
                fed = self.device.feed(part, logits=True, stages=stages, layers=layers)
                batched = f"{how}: a batch of {len(part)}"
                self._compare(batched, tokens, at, fed.crcs, expected, stages)
                self.device.rewind(at)
            fed = self.device.feed(part, each=True, stages=stages, layers=layers)
            self._compare(how, tokens, at, fed.crcs, expected, stages)
            self.done.positions += len(part)
            self.progress(len(part))

    def _expect(self, part: Sequence[int]) -> dict[tuple[int, int, int], int]:
        from host.reference.model import stage_crc

        found: dict[tuple[int, int, int], int] = {}
        self.model.feed(
            part,
            logits="all",
            trace=lambda stage, layer, pos, m, e: found.__setitem__(
                (pos, int(stage), layer), stage_crc(m, e)
            ),
        )
        return found

    def _compare(
        self,
        how: str,
        tokens: list[int],
        first: int,
        rows: list[list[int]],
        expected: dict[tuple[int, int, int], int],
        stages: bool,
    ) -> None:
        layers = self.model.facts.layers
        for index, row in enumerate(rows):
            names = [(13, 0)]
            if stages:
                names = stages_of(layers, head=len(row) > len(stages_of(layers, head=False)))
            for (stage, layer), crc in zip(names, row, strict=False):
                if crc != expected[first + index, stage, layer]:
                    raise self._differs(how, tokens, first + index, stage, layer)
                self.done.stages += 1

    def _differs(
        self, how: str, tokens: list[int], pos: int, stage: int, layer: int
    ) -> CheckFailed:
        from host.reference.model import Stage

        where = f"layer {layer}, " if 1 <= stage <= 11 else ""
        message = (
            f"The board and the reference differ first in stage {Stage(stage).label}, {where}"
            f"position {pos} ({how})"
        )
        try:
            amount = self._by_how_much(tokens[: pos + 1], stage, layer)
        except BoardError as exc:
            amount = f"The activations cannot be fetched: {exc.message}"
        return CheckFailed(message, amount)

    def _by_how_much(self, tokens: list[int], stage: int, layer: int) -> str:
        self.device.session_reset()
        for at in range(0, len(tokens) - 1, _BATCH):
            self.device.feed(tokens[at : min(at + _BATCH, len(tokens) - 1)])
        theirs = self.device.capture(stage, layer, tokens[-1], len(tokens) - 1)
        ours: list[tuple[np.ndarray, int]] = []

        def keep(s: int, at_layer: int, pos: int, mantissas: np.ndarray, exponent: int) -> None:
            if (int(s), at_layer, pos) == (stage, layer, len(tokens) - 1):
                ours.append((mantissas.astype(np.int64), exponent))

        self.model.rewind(0)
        self.model.feed(tokens, logits="last", trace=keep)
        mantissas, exponent = ours[0]
        if len(mantissas) != len(theirs.mantissas):
            return (
                f"The board reports {len(theirs.mantissas)} values, the reference {len(mantissas)}"
            )
        if exponent == theirs.exponent and np.array_equal(mantissas, theirs.mantissas):
            return "Evaluated once more, one token at a time, they are equal"
        real = np.ldexp(mantissas.astype(float), exponent)
        real -= np.ldexp(theirs.mantissas.astype(float), theirs.exponent)
        worst = int(np.argmax(np.abs(real)))
        wrong = int(np.count_nonzero(real))
        apart = f"the exponents are {theirs.exponent} and {exponent}"
        if exponent == theirs.exponent:
            apart = f"{int(np.max(np.abs(mantissas - theirs.mantissas)))} in the mantissas"
        return (
            f"{wrong} of {len(mantissas)} values differ, by up to {abs(float(real[worst])):.3g} "
            f"(element {worst}; {apart})"
        )


def _tokenizer(package: Package) -> Tokenizer:
    from host.tokenizer import Tokenizer, TokenizerSpec

    return Tokenizer(TokenizerSpec.from_bin(package.read_file("tokenizer.bin")))


def _text_tokens(package: Package, tokenizer: Tokenizer, text: str, n: int) -> list[int]:
    facts = package.model
    tokens = [facts.bos] if facts.add_bos and facts.bos >= 0 else []
    of_text = tokenizer.encode_start(text, n)
    if not of_text:
        raise InputError("The text is empty", "Give one with words in it")
    while len(tokens) < n:
        tokens += of_text
    return tokens[:n]


def _compare_text(device: Device, tokenizer: Tokenizer, text: str, done: Verified) -> None:
    # No text has more tokens than bytes and its prefix, and more bytes than characters.
    for part in _cut(text[: _PARTS * _PART_BYTES], _PART_BYTES)[:_PARTS]:
        ours, theirs = tokenizer.encode(part), device.encode(part)
        if ours != theirs:
            at = _first_difference(ours, theirs)
            raise CheckFailed(
                f"The board encodes a text otherwise than the reference, from token {at} on",
                f"The text is {part[:60]!r}",
            )
        back, expected = device.decode(ours), tokenizer.decode(ours)
        if back != expected:
            raise CheckFailed(
                "The board decodes tokens otherwise than the reference",
                f"It says {back[:60]!r} for {expected[:60]!r}",
            )
        done.texts += 1


def _cut(text: str, most: int) -> list[str]:
    """Parts of at most so many bytes, at whole characters."""
    parts, data = [], text.encode()
    while data:
        cut = min(most, len(data))
        while cut < len(data) and data[cut] & 0xC0 == 0x80:
            cut -= 1
        parts.append(data[:cut].decode())
        data = data[cut:]
    return parts


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


_SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=0, penalty=1.3),
    Sampling(temperature=1, top_p=1),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=1.5, top_k=40, top_p=1),
    Sampling(temperature=0.7, top_k=5, top_p=0.5, penalty=1.1),
)


def _compare_sampling(run: _Run, tokens: list[int], seed: int) -> None:
    from host.reference.sampler import Sampler, SamplingParameters

    if not tokens:  # of a context of one position
        return
    run.device.session_reset()
    run.model.rewind(0)
    logits = run.model.feed(tokens)
    assert logits is not None
    last = len(tokens) - 1
    if last:
        run.device.feed(tokens[:-1])
    for number, sampling in enumerate(_SAMPLINGS):
        values = (*sampling.q16()[:4], (seed + number) % (1 << 64))
        run.device.rewind(last)
        run.device.feed(tokens[-1:], logits=True)
        run.device.sampling(*values)
        theirs = run.device.sample()
        ours = Sampler(SamplingParameters(*values)).sample(logits.m[0], int(logits.e[0]), tokens)
        if theirs != ours:
            raise CheckFailed(
                f"The board samples token {theirs}, the reference {ours}",
                f"Both with {sampling} and seed {values[4]}",
            )
        run.done.sampled += 1


def _compare_generation(run: _Run, tokenizer: Tokenizer, sampling: Sampling) -> None:
    from host.reference.sampler import Sampler, SamplingParameters
    from host.reference.session import Policy, Session

    values = sampling.q16()
    prompt = "Once upon a time"
    if len(tokenizer.encode(prompt)) + 1 >= run.context:  # with BOS, no room for an answer
        return
    session = Session(run.model, tokenizer, Policy.STOP)
    session.prompt(prompt)
    # No further than the board's context, which may be shorter than the model's.
    count = min(_GENERATED, run.context - len(session.tokens))
    answer = session.generate(count, Sampler(SamplingParameters(*values)))
    ours = tokenizer.decode(answer.tokens, at_start=False)
    run.device.session_reset()
    run.device.sampling(*values)
    pieces: list[str] = []
    done = run.device.generate(prompt, count, pieces.append)
    theirs = "".join(pieces)
    if done.missing:
        raise LinkError("The line loses too much", "Use a shorter cable or a lower -b")
    if theirs != ours:
        raise CheckFailed(
            f"With seed {sampling.seed} the board writes another text than the reference",
            f"It writes {theirs!r} where {ours!r} is expected",
        )
    run.done.sampled += done.tokens
    run.done.texts += 1


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        InputError: It cannot be read, is no regular file, too long, empty or not UTF-8.
    """
    try:
        text = read_file(path, _MAX_TEXT_BYTES, "Name a shorter one").decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{path} is not UTF-8: byte {exc.start} is wrong", "Convert it to UTF-8"
        ) from exc
    if not text.strip():
        raise InputError(f"{path} holds no text", "Name a file with words in it")
    return text
