"""`host chat`: prompts from a terminal or a pipe, answers as they come."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from host.board import ui
from host.errors import BoardError, CheckFailed, InputError, UsageError
from host.link.client import Device, End, Generated, Refused
from host.link.transports import state_dir

_Q16 = 65536
_CONTEXT_FULL = -8  # the engine's TLLM_E_CONTEXT
_REASONS = {
    End.STOP: "stop",
    End.LENGTH: "length",
    End.CONTEXT: "context full",
    End.CANCELLED: "stopped",
    End.NONE: "ended",
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, as people write it.

    Attributes:
        temperature: 0 for the most likely token, else 0.01 to 100.
        top_k: Candidates at most; 0 for all.
        top_p: Share of the probability the candidates make up; 1 for all.
        penalty: For repetition, 1 (none) to 2.
        seed: 64 bits.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise UsageError("The temperature must be 0 or from 0.01 to 100")
        if not 0 <= self.top_k < 1 << 32:
            raise UsageError("--top-k must be 0 or a number of candidates")
        if not 0 < self.top_p <= 1:
            raise UsageError("--top-p must be above 0 and at most 1")
        if not 1 <= self.penalty <= 2:
            raise UsageError("The penalty must be from 1 to 2")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError("The seed must be a number from 0 to 2^64 - 1")

    def q16(self) -> tuple[int, int, int, int, int]:
        """Temperature, top_k, top_p, penalty and seed as docs/NUMERICS.md section 5 has them."""
        heat = 0 if self.temperature == 0 else max(655, round(self.temperature * _Q16))
        return heat, self.top_k, round(self.top_p * _Q16), round(self.penalty * _Q16), self.seed


def random_seed() -> int:
    """A seed for those who gave none."""
    return secrets.randbits(32)


def check_ready(info: dict[str, Any]) -> None:
    """Raises `BoardError` unless the board has a model loaded."""
    if info.get("state") == "ready":
        return
    if said := info.get("error"):
        raise BoardError(str(said))  # with what to do about it
    raise BoardError(
        "The board has no model", "Put one on its card with `host flash` or `host upload`"
    )


def chat(
    device: Device,
    prompts: Iterable[str],
    sampling: Sampling,
    *,
    n: int = 256,
    drop: bool = False,
    as_json: bool = False,
    echo: bool = False,
) -> list[Generated]:
    """Answers prompts in turn, in one conversation.

    Args:
        device: The board.
        prompts: As they are typed.
        sampling: How tokens are chosen.
        n: Tokens of an answer at most; 0 for no limit.
        drop: At the context's end drop the oldest turns, instead of stopping.
        as_json: One JSON object an answer, on one line, instead of the text.
        echo: Print each prompt before its answer.

    Raises:
        BoardError: The board has no model, or refuses a prompt: one longer than its context.
        InputError: A prompt was typed in another encoding than UTF-8.
        CheckFailed: The line lost bytes of answers for good; said when all are answered.
    """
    check_ready(device.info())
    device.session_reset(drop=drop)
    device.sampling(*sampling.q16())
    results = []
    for prompt in prompts:
        _check_text(prompt)
        pieces: list[str] = []

        def emit(piece: str, pieces: list[str] = pieces) -> None:
            pieces.append(piece)
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()

        if echo and not as_json:
            sys.stdout.write(prompt)
        try:
            done = device.generate(prompt, n, emit)
        except Refused as exc:
            if exc.status != _CONTEXT_FULL:
                raise
            raise BoardError(
                "The conversation fills the model's context",
                "Run `host chat` again for a new one, with --drop to forget its oldest turns",
            ) from exc
        results.append(done)
        if as_json:
            ui.show_json(_as_json(prompt, "".join(pieces), done, sampling))
        else:
            sys.stdout.write("\n")
            sys.stdout.flush()
            ui.note(_summary(done))
        if done.missing:
            ui.note(f"{done.missing:,} bytes of this answer were lost on the line, at the \ufffd.")
    if lost := sum(done.missing for done in results):
        raise CheckFailed(
            f"The line lost {lost:,} bytes of the answers",
            "Use a shorter cable or a lower -b, and ask again",
        )
    return results


def _check_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as exc:
        raise InputError(
            f"The prompt is not UTF-8: character {exc.start + 1} is none",
            "Use a UTF-8 terminal and locale, such as LANG=C.UTF-8",
        ) from exc


def _summary(done: Generated) -> str:
    rate = f"{done.tokens_per_second:.1f} tokens/s, " if done.tokens > 1 else ""
    return (
        f"[{done.tokens} tokens, {rate}{100 * done.reading_share:.0f} % reading, "
        f"{_REASONS[done.end]}]"
    )


def _as_json(prompt: str, text: str, done: Generated, sampling: Sampling) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": text,
        "end": _REASONS[done.end],
        "prompt_tokens": done.prompt_tokens,
        "tokens": done.tokens,
        "tokens_per_second": round(done.tokens_per_second, 3),
        "prompt_seconds": done.prompt_s,
        "answer_seconds": done.answer_s,
        "reading_seconds": done.reading_s,
        "bytes_read": done.read_bytes,
        "bytes_missing": done.missing,
        "seed": sampling.seed,
    }


def prompts_of_pipe() -> Iterator[str]:
    """The lines of standard input; empty ones are left out.

    Raises:
        InputError: A line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise InputError(
                f"Line {number} of the input is not UTF-8: byte {exc.start} is "
                f"0x{line[exc.start]:02x}",
                "Convert the text to UTF-8",
            ) from exc
        if text:
            yield text


def prompts_of_terminal() -> Iterator[str]:
    """What the user types, with line editing and history; ends at Ctrl-C, Ctrl-D or /exit."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output

    history: History
    try:
        folder = state_dir()
        folder.mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(folder / "history"))
    except OSError:
        history = InMemoryHistory()
    # The answers may go elsewhere, and nothing is to come between them there.
    output = None if sys.stdout.isatty() else create_output(sys.stderr)
    session: PromptSession[str] = PromptSession(history=history, output=output)
    ui.note("Type a prompt. Ctrl-C stops an answer, a second one leaves.")
    while True:
        try:
            text = session.prompt("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text in {"/exit", "/quit"}:
            return
        if text:
            yield text
