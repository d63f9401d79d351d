"""The C engine beside the numpy reference on random models; see test_cross.py.

As a program, `cross.py LIBRARY FIRST SEEDS` runs as many models on one library as one likes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import engine_library as el
from random_models import random_package

from host.errors import InputError
from host.package import Package
from host.reference.model import Mantissas, ReferenceModel, Stage, stage_crc
from host.reference.sampler import ONE, Sampler, SamplingParameters
from host.reference.session import EndReason, Policy, Session

Library: TypeAlias = tuple[Any, Any]
"""(ffi, lib), as `engine_library.open_library` returns them."""
Stages: TypeAlias = list[tuple[int, int, int, int]]
"""(position, layer, stage, CRC) of every stage that was reported."""
ENDS = {
    0: EndReason.LIMIT,
    el.END_STOP_TOKEN: EndReason.STOP_TOKEN,
    el.END_CONTEXT: EndReason.CONTEXT,
}
MOST_TOKENS = 60


@dataclass(frozen=True)
class Files:
    """What `Engine` wants of a model, out of a package."""

    package: Package

    @property
    def files(self) -> list[tuple[str, bytes]]:
        names = [file.name for file in self.package.model.files]
        return [(name, self.package.read_file(name)) for name in names]

    def descriptor(self) -> bytes:
        return self.package.read_file("descriptor.bin")


@dataclass(frozen=True)
class Feed:
    """Goes back to a position, then evaluates tokens there."""

    rewind: int
    tokens: list[int]
    logits: bool


@dataclass(frozen=True)
class Turn:
    """A prompt, and the most tokens that an answer may have. With sampling, it is set before."""

    prompt: list[int]
    limit: int
    sampling: SamplingParameters | None


@dataclass(frozen=True)
class Answered:
    """What a turn came to; reason None: the prompt was refused."""

    tokens: list[int]
    reason: EndReason | None
    held: list[int]
    n_past: int


# --- What is asked of both ------------------------------------------------------------------------


def random_feeds(rng: random.Random, package: Package) -> list[Feed]:
    """Feeds that fill the context, or the first of a long one, with steps back between."""
    vocab, context = package.model.vocab, min(package.model.context, MOST_TOKENS)
    feeds: list[Feed] = []
    n_past = 0
    while n_past < context and len(feeds) < 6:
        back = rng.randint(0, n_past) if rng.random() < 0.3 else n_past
        count = rng.randint(1, min(context - back, 30))
        tokens = [rng.randrange(vocab) for _ in range(count)]
        if rng.random() < 0.2:
            tokens = tokens[:1] * count
        feeds.append(Feed(back, tokens, rng.random() < 0.7))
        n_past = back + count
    return feeds


def random_turns(rng: random.Random, package: Package) -> list[Turn]:
    """A conversation longer than its context."""
    vocab, context = package.model.vocab, package.model.context
    turns = []
    for number in range(4):
        count = rng.choice((0, 1, rng.randint(0, context), rng.randint(0, 4)))
        prompt = [rng.randrange(vocab) for _ in range(count)]
        sampling = SamplingParameters(
            temperature=rng.choice((0, 655, 52429, ONE, rng.randint(655, 6553600))),
            top_k=rng.choice((0, 1, 5, vocab, rng.randint(0, vocab + 1))),
            top_p=rng.choice((0, 1, ONE - 1, ONE, rng.randint(0, 2 * ONE))),
            penalty=rng.choice((ONE, ONE + 1, 72090, 2 * ONE)),
            seed=rng.getrandbits(64),
        )
        keep = number > 0 and rng.random() < 0.4
        turns.append(Turn(prompt, rng.randint(1, 6), None if keep else sampling))
    return turns


# --- The reference --------------------------------------------------------------------------------


def reference_stages(package: Package, feeds: Sequence[Feed]) -> list[Stages]:
    """The stages of each feed, sorted."""
    model = ReferenceModel(package)
    found = []
    for feed in feeds:
        stages: Stages = []

        def trace(
            stage: Stage, layer: int, pos: int, m: Mantissas, e: int, stages: Stages = stages
        ) -> None:
            stages.append((pos, layer, int(stage), stage_crc(m, e)))

        model.rewind(feed.rewind)
        model.feed(feed.tokens, logits="last" if feed.logits else "none", trace=trace)
        found.append(sorted(stages))
    return found


def reference_answers(package: Package, policy: Policy, turns: Sequence[Turn]) -> list[Answered]:
    """How the conversation goes."""
    session = Session(ReferenceModel(package), policy=policy)
    sampler = Sampler(SamplingParameters())
    done = []
    for turn in turns:
        if turn.sampling is not None:
            sampler = Sampler(turn.sampling)
        tokens: list[int] = []
        reason = None
        try:
            session.prompt_tokens(turn.prompt)
            answer = session.generate(turn.limit, sampler)
            tokens, reason = list(answer.tokens), answer.reason
        except InputError:
            pass
        done.append(Answered(tokens, reason, session.tokens, session.n_past))
    return done


# --- The engine -----------------------------------------------------------------------------------


def random_port(rng: random.Random, files: Files) -> el.Port:
    """Weights in memory, on the card, or some here and some there; parts in any order."""
    salt = rng.randrange(1 << 16)
    return el.Port(
        files,
        mapped={
            "none": lambda _file, _at, _len: False,
            "all": lambda _file, _at, _len: True,
            "files": lambda file, _at, _len: (file * 7 + salt) % 3 > 0,
            "windows": lambda file, at, _len: (file + at // 4096 + salt) % 3 > 0,
        }[rng.choice(("none", "all", "files", "windows"))],
        prefetches=rng.random() < 0.7,
        shuffle_parts=rng.random() < 0.5,
        threads=rng.random() < 0.1,
    )


def random_way(rng: random.Random) -> dict[str, Any]:
    """A configuration of the engine."""
    return {
        "batch": rng.choice((1, 1, 2, 3, 8, rng.randint(1, 32))),
        "chunk": 4096 * rng.choice((1, 1, 2, 8)),
        "parts": rng.choice((1, 1, 2, 3, 8)),
        "check_streamed": rng.random() < 0.3,
    }


def engine_stages(engine: el.Engine, feeds: Sequence[Feed]) -> list[Stages]:
    """The stages of each feed, sorted."""
    found = []
    for feed in feeds:
        engine.stages.clear()
        engine.lib.tllm_rewind(engine.engine, feed.rewind)
        assert engine.feed(feed.tokens, logits=feed.logits) == 0
        found.append(sorted(engine.stages))
    return found


def engine_answers(engine: el.Engine, policy: Policy, turns: Sequence[Turn]) -> list[Answered]:
    """How the conversation goes."""
    session = el.Session(engine, el.DROP if policy is Policy.DROP else el.STOP)
    done = []
    for turn in turns:
        if turn.sampling is not None:
            values = vars(turn.sampling)
            session.struct.sampling = {name: values[name] for name in values if name != "seed"}
            session.struct.rng.state = turn.sampling.seed
        tokens: list[int] = []
        reason = None
        if session.prompt(*turn.prompt) == 0 and session.held:
            goes_on, end = 1, 0
            while goes_on == 1 and len(tokens) < turn.limit:
                goes_on, token, end = session.next()
                assert goes_on >= 0
                tokens += [token] * goes_on
            reason = ENDS[end]
        done.append(Answered(tokens, reason, session.held, engine.n_past))
    return done


# --- Side by side ---------------------------------------------------------------------------------


def first_difference(expected: list[Stages], found: list[Stages]) -> str:
    """The first stage, as the engine works, that is not the reference's; empty where all are."""
    for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        if wanted != got:
            pos, layer, stage, _ = min(set(wanted) ^ set(got))
            return f"feed {number}, stage {Stage(stage).label}, layer {layer}, position {pos}"
    return ""


def differences(seed: int, libraries: Sequence[Library]) -> Iterator[str]:
    """Runs one random model everywhere and yields a line for everything that is not equal."""
    rng = random.Random(f"cross {seed}")
    with tempfile.TemporaryDirectory() as folder:
        package = random_package(seed, Path(folder))
        files = Files(package)
        feeds, turns = random_feeds(rng, package), random_turns(rng, package)
        policy = rng.choice([*Policy])
        stages = reference_stages(package, feeds)
        answers = reference_answers(package, policy, turns)
        for number, (ffi, lib) in enumerate(libraries):
            way = random_way(rng)
            engine = el.Engine(ffi, lib, files, random_port(rng, files), **way)
            where = f"seed {seed}, library {number}, {way}: "
            if place := first_difference(stages, engine_stages(engine, feeds)):
                yield where + place
            for turn, (wanted, got) in enumerate(
                zip(answers, engine_answers(engine, policy, turns), strict=True)
            ):
                if wanted != got:
                    yield f"{where}turn {turn}: {got} and not {wanted}"
                    break


def main() -> int:
    """Runs what the arguments say; 0 if all was equal."""
    library, first, seeds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    opened = [el.open_library(library)]
    wrong = 0
    for seed in range(first, first + seeds):
        for line in differences(seed, opened):
            print(line)
            wrong += 1
    print(f"{seeds} models, {wrong} differences")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
