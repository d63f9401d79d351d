"""Verify: equal is said with its counts, and each kind of difference is found and named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_tools import Host, make_host

from host.board.card import write_card
from host.board.contents import Contents
from host.link.client import stages_of
from host.reference import model as reference
from host.reference.sampler import Sampler
from host.tokenizer import Tokenizer
from tests.conftest import Build, Quantized

pytestmark = pytest.mark.shared


@pytest.fixture
def package(quantized: Quantized) -> Path:
    return quantized("stories260K")


@pytest.fixture
def host(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    build_sim: Build,
    gcc: str,
    package: Path,
    tmp_path: Path,
) -> Host:
    (tmp_path / "sim").mkdir()
    write_card(tmp_path / "sim" / "card", Contents.of(package))
    return make_host(monkeypatch, capsys, tmp_path, build_sim(gcc, ("-O2",)))


def test_every_stage_of_every_position_is_compared(host: Host, package: Path) -> None:
    said = host("verify", package, "-p", "sim", "--positions", 20, "--seed", 3)
    assert said.code == 0, said.err
    batch_and_single = 10 * len(stages_of(5, head=True)) + 10 * len(stages_of(5, head=False)) + 4
    single = 10 * len(stages_of(5, head=True))
    assert said.out.startswith(f"20 positions, all equal ({batch_and_single + single} stages, ")


def test_runs_longer_than_the_context_are_cut(
    host: Host, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short-sim"
    short.write_text(f'#!/bin/sh\nexec "{os.environ["TLLM_SIM"]}" --context 16 "$@"\n')
    short.chmod(0o755)
    monkeypatch.setenv("TLLM_SIM", str(short))
    said = host("verify", package, "-p", "sim", "--positions", 50)
    assert said.code == 0, said.err
    assert said.out.startswith("50 positions, all equal")


@pytest.mark.parametrize(
    ("stage", "layer", "place"),
    [
        (reference.Stage.GATE, 2, "stage gate, layer 2, position 0 "),
        (reference.Stage.LOGITS, 0, "stage logits, position 7 "),
        (reference.Stage.ATTN, 4, "stage attn, layer 4, position 0 "),
    ],
)
def test_a_stage_that_differs_is_named_with_how_much(
    host: Host,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: reference.Stage,
    layer: int,
    place: str,
) -> None:
    report = reference._report

    def wrong(trace: object, at: reference.Stage, where: int, *rest: object) -> object:
        if (at, where) == (stage, layer):
            block = rest[-1]
            block.m[:, 3] += 5  # type: ignore[attr-defined]
        return report(trace, at, where, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "_report", wrong)
    said = host("verify", package, "-p", "sim", "--positions", 16)
    assert said.code == 1
    assert place in said.err
    assert "1 of " in said.err
    assert "(element 3; 5 in the mantissas)" in said.err
    assert said.out == ""


def test_a_token_sampled_otherwise_is_a_difference(
    host: Host, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Sampler.sample
    monkeypatch.setattr(
        Sampler, "sample", lambda *args: (sample(*args) + 1) % 512 if len(args) > 3 else 0
    )
    said = host("verify", package, "-p", "sim", "--positions", 4)
    assert said.code == 1
    assert "samples token" in said.err


def test_a_text_encoded_or_decoded_otherwise_is_a_difference(
    host: Host, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, decode = Tokenizer.encode, Tokenizer.decode
    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "encode", lambda *args: [*encode(*args)[:-1], 7])
        said = host("verify", package, "-p", "sim", "--positions", 4)
    assert said.code == 1
    assert "encodes a text otherwise" in said.err
    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "decode", lambda *args: decode(*args) + "!")
        said = host("verify", package, "-p", "sim", "--positions", 4)
    assert said.code == 1
    assert "decodes tokens otherwise" in said.err


def test_numbers_that_differ_alone_in_the_exponent_are_a_difference() -> None:
    mantissas = np.arange(4, dtype=np.int32)
    assert reference.stage_crc(mantissas, -3) != reference.stage_crc(mantissas, -4)
