"""From checkpoint to package: sizes, memory, and nothing left behind by a failure."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    SMALL,
    TIED,
    Shape,
    Tensors,
    random_tensors,
    save_huggingface,
    save_llama2c,
)
from safetensors.numpy import save_file

from host.checkpoint import load_checkpoint
from host.errors import InputError, OutputError
from host.package import Package
from host.quantize import quantize_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.shared
def test_files_of_the_surrogate_have_the_known_sizes(surrogate_dir: Path, tmp_path: Path) -> None:
    report = quantize_checkpoint(load_checkpoint(surrogate_dir), tmp_path / "out")
    sizes = {
        "embed_tokens.bin": 6_144_000,
        "lm_head.bin": 6_144_000,
        "q_proj.bin": 36_864,
        "o_proj.bin": 36_864,
        "k_proj.bin": 18_432,
        "v_proj.bin": 18_432,
        "gate_proj.bin": 196_608,
        "up_proj.bin": 196_608,
        "down_proj.bin": 196_608,
    }
    assert sum(sizes.values()) == 12_988_416
    sizes |= dict.fromkeys(("norm1.bin", "norm2.bin", "final_norm.bin"), 384)
    found = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    others = {
        "descriptor.bin",
        "manifest.json",
        "model_config.json",
        "quantization_scales.json",
        "tokenizer.bin",
    }
    assert {name: found[name] for name in found.keys() - others} == sizes
    assert found.keys() - sizes.keys() == others
    assert report.weight_bytes == sum(sizes.values())
    assert all(row.snr_db is None or row.snr_db > 30 for row in report.rows)


@pytest.mark.parametrize("shape", [SMALL, TIED, Shape(num_hidden_layers=101, hidden_size=2)])
def test_package_holds_the_quantized_tensors(tmp_path: Path, shape: Shape) -> None:
    tensors = random_tensors(shape)
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in", shape, tensors))
    seen: list[tuple[str, int, int]] = []
    report = quantize_checkpoint(checkpoint, tmp_path / "out", lambda *step: seen.append(step))
    package = Package.open(tmp_path / "out")

    names = [row.name for row in report.rows]
    assert [name for name, _, _ in seen] == names
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (report.weight_bytes, report.weight_bytes)
    many = shape.num_hidden_layers > 1
    width = 3 if shape.num_hidden_layers > 99 else 2
    for layer in range(shape.num_hidden_layers):
        prefix = f"layer{layer:0{width}}_" if many else ""
        index = 1 + 9 * layer + 1
        assert names[index] == f"{prefix}q_proj"
        weights = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"].astype(np.float64)
        values = package.tensor(index)
        error = np.abs(values * package.model.tensors[index].scale.value - weights)
        assert error.max() <= np.abs(weights).max() / 127 * 0.501
        norm = package.tensor(index + 4)
        assert norm.dtype == np.dtype(np.int16)
        assert norm.shape == (shape.hidden_size,)
    assert package.model.tied == shape.tie_word_embeddings
    assert (tmp_path / "out" / "lm_head.bin").exists() != shape.tie_word_embeddings
    head = package.tensor(len(names) - 1)
    head_name = "model.embed_tokens.weight" if package.model.tied else "lm_head.weight"
    assert np.corrcoef(head.ravel(), tensors[head_name].ravel())[0, 1] > 0.999


def test_both_formats_give_the_same_package_but_for_the_source(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    checkpoints = [
        load_checkpoint(save_huggingface(tmp_path / "m", TIED, tensors)),
        load_checkpoint(save_llama2c(tmp_path / "l2c" / "m.bin", TIED, tensors)),
    ]
    trees = []
    for number, checkpoint in enumerate(checkpoints):
        quantize_checkpoint(checkpoint, tmp_path / str(number))
        trees.append(tree(tmp_path / str(number)))
    differing = {name for name in trees[0] if trees[0][name] != trees[1][name]}
    assert differing == {"model_config.json", "manifest.json", "descriptor.bin"}


def test_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in"))
    for name in ("a", "b"):
        quantize_checkpoint(checkpoint, tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a" / "model_config.json").read_text()


def test_a_package_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = quantize_checkpoint(load_checkpoint(save_huggingface(tmp_path / "in")), out)
    second = quantize_checkpoint(load_checkpoint(save_llama2c(tmp_path / "l" / "m.bin")), out)
    assert first.model.fingerprint != second.model.fingerprint
    assert Package.open(out).model.fingerprint == second.model.fingerprint
    assert not (out / "lm_head.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "l", "out"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in"))
    out = tmp_path / "out"
    out.mkdir()
    quantize_checkpoint(checkpoint, out)  # an empty folder may go
    for name in ("notes.txt", "folder"):
        extra = out / name
        extra.mkdir() if name == "folder" else extra.write_text("mine")
        before = tree(out)
        with pytest.raises(OutputError, match="holds files that are not a package's"):
            quantize_checkpoint(checkpoint, out)
        assert tree(out) == before
        extra.rmdir() if name == "folder" else extra.unlink()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        quantize_checkpoint(checkpoint, file)
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "out"]


def nan_at_the_end(folder: Path) -> None:
    tensors = random_tensors(SMALL)
    tensors["lm_head.weight"][-1, -1] = np.nan
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("present", [False, True])
def test_nothing_is_left_by_a_bad_weight(tmp_path: Path, present: bool) -> None:
    folder = save_huggingface(tmp_path / "in")
    out = tmp_path / "out"
    if present:
        quantize_checkpoint(load_checkpoint(folder), out)
    before = tree(tmp_path / "out")
    nan_at_the_end(folder)
    with pytest.raises(InputError, match=r"lm_head\.weight has a NaN"):
        quantize_checkpoint(load_checkpoint(folder), out)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", *["out"] * present]


class FullDisk:
    """Lets so many bytes be written, then every write fails as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        real = Path.open

        def opener(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = real(path, mode, *args, **options)
            if mode == "xb":
                return _Limited(file, self)
            return file

        monkeypatch.setattr(Path, "open", opener)


class _Limited:
    def __init__(self, file: Any, disk: FullDisk) -> None:
        self.file = file
        self.disk = disk
        self.flush = file.flush
        self.fileno = file.fileno

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> None:
        self.disk.free -= len(data)
        if self.disk.free < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)


def test_full_disk_at_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in"))
    out = tmp_path / "out"
    quantize_checkpoint(checkpoint, out)
    before = tree(out)
    total = sum(map(len, before.values()))
    for free in range(0, total, total // 23):
        with monkeypatch.context() as patch:
            FullDisk(patch, free)
            with pytest.raises(OutputError, match="the disk is full"):
                quantize_checkpoint(checkpoint, out)
        assert tree(out) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    with monkeypatch.context() as patch:
        FullDisk(patch, total)
        quantize_checkpoint(checkpoint, out)
    assert tree(out) == before


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_nothing_is_left_by_a_failing_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in"))
    out = tmp_path / "out"
    quantize_checkpoint(checkpoint, out)
    before = tree(out)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    real = Path.rename

    def fail_for_the_new_one(path: Path, target: Path) -> Path:
        if target == out and path.parent == tmp_path:
            fail()
        return real(path, target)

    with monkeypatch.context() as patch:
        if call == "rename":
            patch.setattr(Path, "rename", fail_for_the_new_one)
        else:
            patch.setattr("os.fsync", fail)
        with pytest.raises(InputError, match="device reports an error"):
            quantize_checkpoint(checkpoint, out)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head_dim": 5, "hidden_size": 20}, "head size is 5, and an even one"),
        ({"head_dim": 258, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1},
         "head size is 258, and 1 to 256"),
        ({"hidden_size": 32770}, "hidden size is 32770"),
    ],
)  # fmt: skip
def test_model_beyond_the_engine(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    shape = Shape(**{"vocab_size": 260, "intermediate_size": 1, "num_hidden_layers": 1, **changes})
    checkpoint = load_checkpoint(save_huggingface(tmp_path / "in", shape))
    with pytest.raises(InputError, match=match):
        quantize_checkpoint(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_longer_context_is_cut(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path / "in", max_position_embeddings=131072)
    quantize_checkpoint(load_checkpoint(folder), tmp_path / "out")
    package = Package.open(tmp_path / "out")
    assert package.model.context == 65535
    assert package.config.max_position_embeddings == 131072


MEASURE = """
import resource, sys
from pathlib import Path
from host.checkpoint import load_checkpoint
from host.quantize import quantize_checkpoint
quantize_checkpoint(load_checkpoint(sys.argv[1]), Path(sys.argv[2]))
status = Path("/proc/self/status")
if status.exists():  # ru_maxrss would count what the parent held when it forked
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_peak_memory(tmp_path: Path, dtype: type) -> None:
    shape = Shape(vocab_size=50_000, hidden_size=1024, tie_word_embeddings=True, head_dim=256)
    block = np.random.default_rng(1).standard_normal((50, 1024)).astype(np.float32)
    tensors = random_tensors(Shape(**{**vars(shape), "vocab_size": 1}))
    tensors["model.embed_tokens.weight"] = np.tile(block, (1000, 1))
    stored: Tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    folder = save_huggingface(tmp_path / "in", shape, stored)
    del tensors, stored
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    largest = 50_000 * 1024 * 4
    peak = int(run.stdout)
    print(f"peak {peak / 1e6:.0f} MB for a tensor of {largest / 1e6:.0f} MB")
    # What is promised is 2 and 200 MB; a copy of the tensor too many shall be seen.
    assert largest < peak < 1.5 * largest + 150_000_000
