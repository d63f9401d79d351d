"""The doctor: what it sees, and what it says is wrong."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest

from host.board import doctor
from host.board.doctor import examine, show
from host.errors import LinkError
from host.link.client import Refused, Status

READY = {
    "state": "ready", "board": "ESP32-CAM", "version": "1", "model": "m", "fingerprint": "ab" * 32,
    "context": 64, "psram_bytes": 4 << 20, "psram_mhz": 80, "reset_reason": "power-on",
    "chip": "ESP32 v3.1, 2 cores, 240 MHz",
}  # fmt: skip


class Board:
    """A board that is as healthy as its facts."""

    info_: dict[str, Any] = READY
    rate = 10e6
    wrong = 0
    space_: tuple[int, int] | Refused = (1000, 2000)

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> dict[str, Any]:
        return self.info_

    def stats(self) -> dict[str, Any]:
        return {"read_errors": 0}

    def space(self) -> tuple[int, int]:
        if isinstance(self.space_, Refused):
            raise self.space_
        return self.space_

    def read_test(self, block: int, total: int) -> tuple[float, int]:
        if block > 8192:
            raise Refused(Status.PAYLOAD)
        return total / self.rate, 0

    def files(self) -> list[tuple[str, int]]:
        old = [("00000000/a.bin", 900 * 4096)]  # of another package: not what is sampled
        return [*old, ("abababab/a.bin", 40 * 4096), ("abababab/b.json", 5000)]

    def check(self, first: int, n: int) -> tuple[int, int, int, int]:
        assert first < 40
        return self.wrong, n, 0, first


def run(
    monkeypatch: pytest.MonkeyPatch, board: type[Board], **facts: Any
) -> tuple[doctor.Report, list[str]]:
    healthy = type("Facts", (board,), {"info_": {**READY, **facts}})
    line = types.SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(doctor, "open_port", lambda *_, **__: line)
    monkeypatch.setattr(doctor, "_reach", lambda *_: healthy())
    monkeypatch.setattr(doctor, "ports", list)
    report = examine("/dev/ttyUSB0", 115200)
    return report, report.problems


def test_a_healthy_board_has_no_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, problems = run(monkeypatch, Board)
    assert problems == []
    assert list(report.read_rates) == [512, 4096, 8192]
    assert report.read_rates[512] == pytest.approx(10e6)
    assert report.checked_chunks == 40
    show(report)
    said = capsys.readouterr().out
    assert "ESP32-CAM" in said
    assert "ESP32 v3.1, 2 cores, 240 MHz" in said
    assert "PSRAM 4,194,304 at 80 MHz" in said
    assert "10.0 MB/s" in said
    assert said.endswith("All is well.\n")


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({"reset_reason": "brown-out: the supply is too weak"}, "stronger supply"),
        ({"reset_reason": "watchdog"}, "was a watchdog"),
        ({"state": "no-card", "error": "There is no card."}, "There is no card."),
    ],
)
def test_each_bad_fact_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], wanted: str
) -> None:
    _, problems = run(monkeypatch, Board, **facts)
    assert len(problems) == 1
    assert wanted in problems[0]


def test_a_slow_or_lying_card_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Board):
        rate = 500_000.0

    class Lying(Board):
        wrong = 1

    class Quick(Board):
        rate = float("inf")

    class Gone(Board):
        space_ = Refused(Status.NO_CARD)

    assert "less than 1 MB/s" in run(monkeypatch, Slow)[1][0]
    report, problems = run(monkeypatch, Lying)
    assert report.wrong_chunks == 1
    assert "wrong bytes" in problems[0]
    assert "no card" in run(monkeypatch, Gone)[1][0]
    report, problems = run(monkeypatch, Quick)  # sooner than the board's clock tells
    assert problems == []
    show(report, as_json=True)
    assert json.loads(capsys.readouterr().out)["read_rates"]["512"] == (1 << 20) * 1_000_000


def test_ports_that_cannot_be_opened_are_said_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str, _: int) -> None:
        raise LinkError(f"The port {name} is not permitted to you", "Run `x`")

    monkeypatch.setattr(doctor, "open_port", refuse)
    monkeypatch.setattr(doctor, "ports", lambda: [("/dev/ttyUSB0", "CP2102")])
    report = examine(None, 115200)
    assert report.problems == ["The port /dev/ttyUSB0 is not permitted to you. Run `x`."]
    show(report)
    assert "CP2102" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "ports", list)
    assert "No serial port is there" in examine(None, 115200).problems[0]
