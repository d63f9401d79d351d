"""The board's program in this process, on a clock of its own, and a package of a few KB."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import ram_board
from checkpoint_files import Shape, random_tensors, save_llama2c

from host.checkpoint import load_checkpoint
from host.quantize import quantize_checkpoint
from tests.conftest import Compile, portable_sources


@pytest.fixture(scope="session")
def library(compile_c: Compile, gcc: str) -> Any:
    """(ffi, lib) of the board's program and the card and line of `ram_board.c`."""
    sources = [*portable_sources(), ram_board.SOURCE]
    path = compile_c("libramboard.so", gcc, ("-O2", "-fPIC", "-shared"), sources)
    return ram_board.open_library(path)


def make_package(folder: Path, seed: int, vocab: int = 264, layers: int = 1) -> Path:
    """A package with random weights."""
    shape = Shape(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    folder.mkdir()
    source = save_llama2c(folder / "model.bin", shape, random_tensors(shape, seed))
    quantize_checkpoint(load_checkpoint(source), folder / "package")
    return folder / "package"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 12 weight files."""
    return make_package(tmp_path_factory.mktemp("faults") / "one", 1)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another package of the same shape."""
    return make_package(tmp_path_factory.mktemp("faults") / "other", 2)
