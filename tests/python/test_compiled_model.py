"""A board built with a generated header computes what one that reads the descriptor computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.board.verify import verify
from host.headers import generate_headers
from host.link.client import Device
from host.link.transports import open_port
from host.package import Package
from tests.conftest import Build, Quantized, insert_card

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def boards(
    gcc: str, build_sim: Build, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The simulated board, built for stories260K alone and for any model."""
    folder = tmp_path_factory.mktemp("header")
    generate_headers(quantized("stories260K"), folder)
    return {
        "compiled": build_sim(gcc, ("-O2", "-DTLLM_COMPILED_MODEL", f"-I{folder}")),
        "any": build_sim(gcc, ("-O2",)),
    }


def connect(sim: Path, card: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    insert_card(state, card)
    monkeypatch.setenv("TLLM_SIM", str(sim))
    return Device(open_port("sim", sim_dir=state))


@pytest.mark.shared
def test_header_and_descriptor_give_the_same_tokens(
    boards: dict[str, Path],
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = quantized("stories260K")
    answers = {}
    for name, sim in boards.items():
        with connect(sim, package, tmp_path / name, monkeypatch) as device:
            assert verify(device, Package.open(package), positions=32).positions == 32
            device.session_reset()
            device.sampling(65536, 0, 58982, 65536, 7)
            text: list[str] = []
            device.generate(PROMPT, 60, text.append)
            answers[name] = "".join(text)
    assert len(answers["any"]) > 60
    assert answers["compiled"] == answers["any"]


@pytest.mark.shared
def test_another_models_card_is_refused(
    boards: dict[str, Path],
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect(boards["compiled"], quantized("bundled"), tmp_path / "s", monkeypatch) as device:
        info = device.info()
    assert info["state"] != "ready"
    assert "The card's model is " in info["error"]
    assert "stories260K" in info["error"]
