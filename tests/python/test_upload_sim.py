"""Uploads to the simulated board, over its own lossy line: complete and equal, or a sentence."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import save_huggingface

from host.board.card import read_slot_fingerprint
from host.board.contents import Contents
from host.board.upload import Uploaded, upload
from host.checkpoint import load_checkpoint
from host.errors import BoardError, LinkError
from host.link.client import Device
from host.link.transports import open_port
from host.quantize import quantize_checkpoint
from tests.conftest import Build

# The reliability job asks for more.
RUNS = int(os.environ.get("TLLM_FAULT_RUNS", "8"))
# What is worse takes minutes of waiting: test_upload.py has it, with a clock of its own.
RATES = (0.0001, 0.0005, 0.001, 0.005)
DIRECTIONS = ("rx", "tx")
KINDS = ("drop", "flip", "dup", "insert")

Send = Callable[..., Uploaded]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    quantize_checkpoint(load_checkpoint(save_huggingface(folder / "model")), folder / "package")
    return folder / "package"


@pytest.fixture
def send(
    build_sim: Build, gcc: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Send:
    """Uploads the package to a simulated board with the options given."""
    monkeypatch.setenv("TLLM_SIM", str(build_sim(gcc, ("-O2",))))

    def run(*options: object) -> Uploaded:
        port = open_port("sim", sim_dir=tmp_path, sim=list(map(str, options)))
        with Device(port) as device:
            return upload(device, Contents.of(package))

    return run


def assert_complete(tmp_path: Path, package: Path) -> None:
    contents = Contents.of(package)
    assert read_slot_fingerprint(tmp_path / "card") == contents.fingerprint
    folder = tmp_path / "card" / "tllm" / contents.folder
    assert {path.name for path in folder.iterdir()} == {file.name for file in contents.files}
    for file in contents.files:
        assert (folder / file.name).read_bytes() == file.path.read_bytes()


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_bad_line_ends_complete_and_equal_or_with_a_sentence(
    send: Send, package: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    rate = RATES[seed % len(RATES)]
    options: list[object] = ["--fault-seed", seed]
    for direction in DIRECTIONS:
        options += [f"--{direction}-{chance.choice(KINDS)}", rate]
    if seed % 2:
        options.append("--boot-noise")
    if seed % 3 == 0:
        options += ["--reset-after", chance.randrange(100, 20000)]
    ended = ""
    try:
        send(*options)
    except (LinkError, BoardError) as exc:
        ended = str(exc)
    if rate <= 0.001:
        assert ended == ""
    if ended:
        assert read_slot_fingerprint(tmp_path / "card") is None
        send()
    assert_complete(tmp_path, package)


@pytest.mark.parametrize("at", [30, 500, 2500, 5000, 9000, 15000])
def test_a_reset_at_any_byte_is_survived(
    send: Send, package: Path, tmp_path: Path, at: int
) -> None:
    done = send("--reset-after", at)
    assert_complete(tmp_path, package)
    assert done.files == len(Contents.of(package).files)


def test_power_cuts_on_the_way_lose_no_more_than_what_was_on_the_way(
    send: Send, package: Path, tmp_path: Path
) -> None:
    cuts = []
    for at in range(3, 400, 13):
        try:
            send("--power-cut-after", at, "--fault-seed", at)
            break
        except LinkError as exc:
            cuts.append(str(exc))
    assert_complete(tmp_path, package)
    assert len(cuts) > 2
    assert all("ended with exit code 42" in said for said in cuts)


def test_a_line_limited_in_rate_carries_little_more_than_the_files(
    send: Send, package: Path, tmp_path: Path
) -> None:
    done = send("--baud", 921600)
    size = Contents.of(package).size
    assert done.sent == size
    assert done.line_bytes < 1.1 * size
    assert_complete(tmp_path, package)
    assert json.loads(json.dumps(done.__dict__))["lost_frames"] == 0
