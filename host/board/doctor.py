"""`host doctor`: what is there, what works, what is wrong and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from host.board import boot, ui
from host.errors import HostError, LinkError
from host.link.client import Device, Refused
from host.link.transports import Transport, open_port, ports

_BLOCKS = (512, 4096, 8192, 16384, 32768)
_TEST_BYTES = 1 << 20
_SAMPLES = 16
_SAMPLE_CHUNKS = 4
_SLOW_BYTES_A_SECOND = 1_000_000
_CLOCK_S = 1e-6  # what the board's clock tells apart
_SOON_S = 0.7
_BOOT_S = 6.0  # for a board that loads a large model
_RATE_S = 2.2  # a program that cannot run says why every 2 s
_RATES = (115200, 74880, 9600, 460800, 921600)  # 74,880: the ROM's with a 26 MHz crystal
_SAID_LINES = 6


@dataclass
class PortSeen:
    """A serial port: its name, what it calls itself, and why it cannot be opened, if so."""

    name: str
    description: str
    problem: str = ""
    is_opened: bool = True


@dataclass
class Report:
    """What was found. Rates are bytes a second by block size.

    Attributes:
        says: The last lines of what comes from a board that the kit's program does not run on.
    """

    ports: list[PortSeen] = field(default_factory=list)
    port: str = ""
    board: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    space: dict[str, int] = field(default_factory=dict)
    read_rates: dict[int, float] = field(default_factory=dict)
    checked_chunks: int = 0
    wrong_chunks: int = 0
    says: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(port: str | None, baud: int, sim_dir: Path | None = None) -> Report:
    """Looks at the computer's ports, and at the board on one of them.

    Args:
        port: The board's; where omitted each port is opened, and no more. Else no other one is:
            opening a port resets many boards.
        baud: Bits a second.
        sim_dir: State folder of the simulated board.

    Returns:
        What was found; `problems` is empty where all is well.
    """
    report = Report(port=port or "")
    for name, description in ports():
        seen = PortSeen(name, description, is_opened=port is None)
        if port is None:
            try:
                open_port(name, baud).close()
            except HostError as exc:
                seen.problem = str(exc)
                report.problems.append(str(exc))
        report.ports.append(seen)
    if port is None:
        if not report.ports:
            report.problems.append(
                "No serial port is there. Plug the board's adapter in, or use `-p sim`."
            )
        return report
    try:
        line = open_port(port, baud, sim_dir=sim_dir)
    except HostError as exc:
        report.problems.append(str(exc))
        for seen in report.ports:
            if seen.name == port:
                seen.problem, seen.is_opened = str(exc), True
        return report
    try:
        with _reach(line, report) as device:
            _examine_board(device, report)
    except HostError as exc:
        report.problems.append(str(exc))
    finally:
        line.close()
    return report


def _reach(line: Transport, report: Report) -> Device:
    """Finds the kit's program on a line.

    Raises:
        HostError: It does not run there; says what does, and what to do.
    """
    heard = boot.listen(line, _SOON_S)
    if not heard.answered:
        if boot.is_boot_loader(line):
            raise boot.in_boot_loader()
        heard = boot.listen(line, _BOOT_S)
    if heard.answered:
        return Device(line)
    report.says = boot.text_of(heard.said)[-_SAID_LINES:]
    if line.baud is not None and boot.is_unreadable(heard.said):
        return _find_rate(line, line.baud, heard, report)
    if trouble := boot.explain(heard.said, line.baud):
        raise trouble
    return Device(line, patience=1.0)  # tries the rates that an upload may have left it at


def _find_rate(line: Transport, baud: int, garbage: boot.Heard, report: Report) -> Device:
    """Tries the usual rates on a board that sends what cannot be read."""
    for rate in _RATES:
        line.set_baud(rate)
        heard = boot.listen(line, _RATE_S)
        if heard.answered:
            report.problems.append(f"The board speaks at {rate} baud, not {baud}. Use -b {rate}.")
            return Device(line)
        report.says = boot.text_of(heard.said)[-_SAID_LINES:]
        if report.says:
            trouble = boot.explain(heard.said, rate)
            more = f" {trouble}" if trouble else ""
            raise LinkError(f"The board speaks at {rate} baud, not {baud}.{more}")
    raise boot.explain(garbage.said, baud) or LinkError("What the board sends cannot be read")


def _examine_board(device: Device, report: Report) -> None:
    report.board = device.info()
    report.stats = device.stats()
    if report.board.get("state") != "ready":
        report.problems.append(str(report.board.get("error") or "The board has no model."))
    reason = str(report.board.get("reset_reason"))
    if reason.startswith("brown-out"):
        report.problems.append("The last reset was a brown-out. Use a stronger supply: 5 V, 1 A.")
    elif reason in ("watchdog", "crash"):
        report.problems.append(f"The last reset was a {reason}. Report it with this output.")
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
        report.read_rates[block] = _TEST_BYTES / max(seconds, _CLOCK_S)
    if report.read_rates and max(report.read_rates.values()) < _SLOW_BYTES_A_SECOND:
        report.problems.append(
            "The card is read at less than 1 MB/s. Try another card; cheap ones and 1-bit mode are "
            "slow."
        )


def _check_chunks(device: Device, report: Report) -> None:
    package = str(report.board.get("fingerprint"))[:8]
    total = sum(
        -(-size // 4096)
        for name, size in device.files()
        if name.startswith(f"{package}/") and name.endswith(".bin")
    )
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
        state = seen.problem or ("ok" if seen.is_opened else "")
        ui.say(f"port       {seen.name}  {seen.description}  {state}".rstrip())
    if not report.ports:
        ui.say("port       no serial port on this computer")
    board = report.board
    if board:
        ui.say(f"board      {board.get('board')}, {board.get('version')}, on {report.port}")
        if board.get("chip"):
            ui.say(f"chip       {board['chip']}")
        ui.say(f"reset      {board.get('reset_reason')}")
        ui.say(
            f"memory     fast {board.get('fast_bytes', 0):,} ({board.get('fast_free', 0):,} free), "
            f"bulk {board.get('bulk_bytes', 0):,} ({board.get('bulk_free', 0):,} free), "
            f"PSRAM {board.get('psram_bytes', 0):,}"
            + (f" at {board['psram_mhz']} MHz" if board.get("psram_mhz") else "")
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
    for line in report.says:
        ui.say(f"it says    {line}")
    for problem in report.problems:
        ui.say(f"problem    {problem}")
    if not report.problems:
        ui.say("All is well.")
