"""Makes `tools` importable however pytest was started."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

STORIES = [
    f"{name} had a {thing}.\n\nThe {thing} was {colour}, and {name} was glad. Number {number}."
    for number, (name, thing, colour) in enumerate(
        (name, thing, colour)
        for name in ("Ann", "Tom", "Lily", "Ben")
        for thing in ("ball", "cat", "red box", "kite")
        for colour in ("blue", "old", "very big")
    )
]


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder with one text of 48 stories."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "stories.txt").write_text("<|endoftext|>".join(STORIES), encoding="utf-8")
    return folder


@pytest.fixture
def configuration(tmp_path: Path, text_folder: Path) -> Path:
    """A run of 20 steps that takes a second or two."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
output = "model"
work = "work"
[data]
texts = ["{text_folder.name}"]
held_out_every = 6
[model]
vocabulary = 320
hidden = 16
layers = 2
heads = 4
kv_heads = 2
feed_forward = 24
context = 64
[training]
steps = 20
batch_rows = 4
row_length = 32
rounded_from = 0.7
evaluate_every = 8
threads = 1
seed = 7
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def llama2c_checkpoint(tmp_path: Path) -> Path:
    """A random llama2.c checkpoint: 320 tokens, hidden 16, 1 layer, 2 heads, FFN 20, context 32."""
    floats = 320 * 16 + 2 * 16 + 4 * 16 * 16 + 3 * 16 * 20 + 16 + 2 * 32 * 4
    values = torch.randn(floats, generator=torch.Generator().manual_seed(3)) * 0.3
    path = tmp_path / "teacher.bin"
    path.write_bytes(struct.pack("<7i", 16, 20, 1, 2, 2, 320, 32) + values.numpy().tobytes())
    return path
