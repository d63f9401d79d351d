"""`host doctor`: what is there, what works, what is wrong and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from host.board import ui
from host.errors import HostError
from host.link.client import Device, Refused
from host.link.transports import open_port, ports

_BLOCKS = (512, 4096, 8192, 16384, 32768)
_TEST_BYTES = 1 << 20
_SAMPLES = 16
_SAMPLE_CHUNKS = 4
_SLOW_BYTES_A_SECOND = 1_000_000


@dataclass
class PortSeen:
    """A serial port: its name, what it calls itself, and why it cannot be opened, if so."""

    name: str
    description: str
    problem: str = ""


@dataclass
class Report:
    """What was found. Rates are bytes a second by block size."""

    ports: list[PortSeen] = field(default_factory=list)
    port: str = ""
    board: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    space: dict[str, int] = field(default_factory=dict)
    read_rates: dict[int, float] = field(default_factory=dict)
    checked_chunks: int = 0
    wrong_chunks: int = 0
    problems: list[str] = field(default_factory=list)


def examine(port: str | None, baud: int, sim_dir: Path | None = None) -> Report:
    """Looks at the computer's ports, and at the board on one of them.

    Args:
        port: The board's; only ports are looked at where omitted.
        baud: Bits a second.
        sim_dir: State folder of the simulated board.

    Returns:
        What was found; `problems` is empty where all is well.
    """
    report = Report(port=port or "")
    for name, description in ports():
        seen = PortSeen(name, description)
        if name != port:
            try:
                open_port(name, baud).close()
            except HostError as exc:
                seen.problem = str(exc)
                if port is None:
                    report.problems.append(str(exc))
        report.ports.append(seen)
    if port is None:
        if not report.ports:
            report.problems.append(
                "No serial port is there. Plug the board's adapter in, or use `-p sim`."
            )
        return report
    try:
        with Device(open_port(port, baud, sim_dir=sim_dir)) as device:
            _examine_board(device, report)
    except HostError as exc:
        report.problems.append(str(exc))
    return report


def _examine_board(device: Device, report: Report) -> None:
    report.board = device.info()
    report.stats = device.stats()
    if report.board.get("state") != "ready":
        report.problems.append(str(report.board.get("error") or "The board has no model."))
    if "psram_bytes" in report.board and not report.board["psram_bytes"]:
        report.problems.append("The board finds no PSRAM. Models need it: try another board.")
    if report.board.get("reset_reason") in ("brown-out", "watchdog"):
        report.problems.append(
            f"The last reset was a {report.board['reset_reason']}."
            + (
                " Use a stronger supply: 5 V, 1 A."
                if "brown" in report.board["reset_reason"]
                else ""
            )
        )
    try:
        free, total = device.space()
        report.space = {"free": free, "total": total}
    except Refused as exc:
        report.problems.append(str(exc))
        return
    if report.board.get("state") == "ready":
        _measure_reads(device, report)
        _check_chunks(device, report)


def _measure_reads(device: Device, report: Report) -> None:
    for block in _BLOCKS:
        try:
            seconds, _ = device.read_test(block, _TEST_BYTES)
        except Refused:
            continue  # larger than this board's buffer
        report.read_rates[block] = _TEST_BYTES / seconds if seconds > 0 else float("inf")
    if report.read_rates and max(report.read_rates.values()) < _SLOW_BYTES_A_SECOND:
        report.problems.append(
            "The card is read at less than 1 MB/s. Try another card; cheap ones and 1-bit mode are "
            "slow."
        )


def _check_chunks(device: Device, report: Report) -> None:
    total = sum(-(-size // 4096) for name, size in device.files() if name.endswith(".bin"))
    step = max(_SAMPLE_CHUNKS, total // _SAMPLES)
    for first in range(0, total, step):
        try:
            wrong, checked, _, chunk = device.check(first, _SAMPLE_CHUNKS)
        except Refused as exc:
            report.problems.append(str(exc))
            return
        report.checked_chunks += checked
        report.wrong_chunks += wrong
        if wrong:
            report.problems.append(
                f"The card gives wrong bytes (first in chunk {chunk} of a file). Run `host upload` "
                "to mend the package; if it comes back, use another card."
            )
            return


def show(report: Report, *, as_json: bool = False) -> None:
    """Prints a report."""
    if as_json:
        value = asdict(report)
        value["read_rates"] = {str(k): round(v) for k, v in report.read_rates.items()}
        ui.show_json(value)
        return
    for seen in report.ports:
        ui.say(f"port       {seen.name}  {seen.description}  {seen.problem or 'ok'}")
    if not report.ports:
        ui.say("port       no serial port on this computer")
    board = report.board
    if board:
        ui.say(f"board      {board.get('board')}, {board.get('version')}, on {report.port}")
        ui.say(f"reset      {board.get('reset_reason')}")
        ui.say(
            f"memory     fast {board.get('fast_bytes', 0):,} ({board.get('fast_free', 0):,} free), "
            f"bulk {board.get('bulk_bytes', 0):,} ({board.get('bulk_free', 0):,} free), "
            f"PSRAM {board.get('psram_bytes', 0):,}"
        )
        model = f"{board.get('model')} ({str(board.get('fingerprint'))[:8]})"
        is_ready = board.get("state") == "ready"
        ui.say(
            f"model      {model}, context {board.get('context')}" if is_ready
            else f"model      none: {board.get('state')}"
        )  # fmt: skip
    if report.space:
        ui.say(
            f"card       {board.get('card')}, {board.get('card_mode')}, "
            f"{report.space['free']:,} of {report.space['total']:,} bytes free"
        )
    for block, rate in report.read_rates.items():
        ui.say(f"reading    {block:>6} bytes at a time: {ui.size_text(rate)}/s")
    if report.checked_chunks:
        ui.say(f"chunks     {report.checked_chunks} sampled, {report.wrong_chunks} wrong")
    for problem in report.problems:
        ui.say(f"problem    {problem}")
    if not report.problems:
        ui.say("All is well.")
