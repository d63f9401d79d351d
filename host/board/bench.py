"""`host bench`: speed of the simulated board, in one run, in ratios that outlive this computer."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from host.board import ui
from host.board.card import write_card
from host.board.chat import Sampling
from host.board.contents import Contents
from host.errors import InputError
from host.link.client import Device
from host.link.transports import card_of, open_port
from host.models import resolve_package

_PROMPT = "Once upon a time"
_BATCH = 32
_ROOM = 32  # for the prompt


@dataclass(frozen=True)
class Measured:
    """One run; rates in tokens a second of the engine's own time."""

    threads: int
    tokens_per_second: float
    prompt_tokens_per_second: float
    bytes_read_per_token: float
    bytes_read_per_prompt_token: float
    reading_share: float


def bench(package: str | None, tokens: int) -> list[Measured]:
    """Runs the simulated board with one thread and with two.

    Args:
        package: What the user wrote; the package made last where omitted.
        tokens: To generate, and to feed as a prompt.

    Raises:
        InputError: There is no such package, or its model's context is too short.
    """
    contents = Contents.of(resolve_package(package))
    with tempfile.TemporaryDirectory(prefix="host-bench-") as folder:
        state = Path(folder)
        card_of(state).parent.mkdir(exist_ok=True)
        write_card(card_of(state), contents)
        return [_measure(state, threads, tokens) for threads in (1, 2)]


def _measure(state: Path, threads: int, tokens: int) -> Measured:
    with Device(open_port("sim", sim_dir=state, sim=["--threads", str(threads)])) as device:
        info = device.info()
        tokens = min(tokens, int(info["context"]) - _ROOM)
        if tokens < 1:
            raise InputError(
                f"The model's context of {info['context']} positions is too short to measure",
                f"Use a model with more than {_ROOM}",
            )
        device.session_reset()
        device.sampling(*Sampling(temperature=1, top_p=1, seed=1).q16())
        answered = device.generate(_PROMPT, tokens, lambda _: None)
        device.session_reset()
        before = device.stats()
        prompt = [1 + index % (int(info["vocab"]) - 1) for index in range(tokens)]
        for at in range(0, tokens, _BATCH):
            device.feed(prompt[at : at + _BATCH])
        after = device.stats()
        prompt_s = (after["total_us"] - before["total_us"]) / 1e6
        prompt_bytes = after["read_bytes"] - before["read_bytes"]
    made = max(1, answered.tokens)
    return Measured(
        threads,
        answered.tokens_per_second,
        tokens / prompt_s if prompt_s > 0 else 0.0,
        answered.read_bytes / made,
        prompt_bytes / tokens,
        answered.reading_share,
    )


def show(runs: list[Measured], *, as_json: bool = False) -> None:
    """Prints the figures, a line each."""
    if as_json:
        ui.show_json([asdict(run) for run in runs])
        return
    one, two = runs
    _say_rates("answer", one.tokens_per_second, two.tokens_per_second)
    _say_rates("prompt", one.prompt_tokens_per_second, two.prompt_tokens_per_second)
    ui.say(
        f"prompt against answer, 2 threads: "
        f"{_ratio(two.prompt_tokens_per_second, two.tokens_per_second)}"
    )
    ui.say(
        f"read from the card: {two.bytes_read_per_token:,.0f} bytes a token of the answer, "
        f"{two.bytes_read_per_prompt_token:,.0f} a token of the prompt"
    )


def _say_rates(what: str, one: float, two: float) -> None:
    ui.say(
        f"{what}, 1 thread: {one:.1f} tokens/s; 2 threads: {two:.1f} tokens/s ({_ratio(two, one)})"
    )


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f} times" if b > 0 else "no ratio"
