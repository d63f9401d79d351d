"""Packages: every byte is accounted for, and a changed one is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import SMALL, TIED, Shape, save_huggingface, save_llama2c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.checkpoint import load_checkpoint
from host.errors import InputError
from host.package import DType, FileEntry, ModelFacts, Package, Scale, TensorEntry, check_facts
from host.package.constants import attention_scale, epsilon, rope_frequencies
from host.package.descriptor import pack_descriptor, parse_descriptor
from host.package.manifest import Checksums, parse_manifest
from host.quantize import quantize_checkpoint

JSON_FILES = ("manifest.json", "model_config.json", "quantization_scales.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two layers, never changed."""
    folder = tmp_path_factory.mktemp("made")
    quantize_checkpoint(load_checkpoint(save_huggingface(folder / "model")), folder / "package")
    return folder / "package"


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(made, tmp_path / "package"))


@pytest.fixture(scope="module")
def model(made: Path) -> ModelFacts:
    return Package.open(made).model


# --- What is written ------------------------------------------------------------------------------


def test_descriptor_is_the_specification_byte_by_byte(made: Path) -> None:
    """Offsets as docs/FORMAT.md has them, read without the code under test."""
    data = (made / "descriptor.bin").read_bytes()

    def at(form: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{form}", data, offset)

    assert data[:4] == b"TLLM"
    assert at("HHII", 4) == (1, 160, len(data), 1)
    assert at("8I", 16) == (300, 24, 2, 4, 2, 6, 40, 32)
    assert at("2i", 48) == (1, 2)
    eps_m, eps_e = at("Ii", 56)
    assert eps_m * 2.0**eps_e == pytest.approx(1e-5, rel=1e-9)
    scale_m, scale_e = at("Ii", 64)
    assert scale_m * 2.0**scale_e == pytest.approx(math.log2(math.e) / math.sqrt(6), rel=2e-7)
    n_files, n_tensors, n_rope, n_crcs, chunk, tokenizer = at("6I", 72)
    assert (n_files, n_tensors, n_rope, chunk, tokenizer) == (22, 21, 3, 4096, 21)
    manifest = json.loads((made / "manifest.json").read_text())
    assert data[96:128].hex() == manifest["fingerprint"]
    assert data[128:160] == b"model".ljust(32, b"\0")
    assert at("I", len(data) - 4) == (zlib.crc32(data[:-4]),)
    assert len(data) == 160 + 48 * n_files + 32 * n_tensors + 4 * (n_rope + n_crcs) + 4

    crcs: list[int] = []
    names = []
    for i in range(n_files):
        raw, size, first_crc, crc, zero = at("32s4I", 160 + 48 * i)
        names.append(raw.rstrip(b"\0").decode())
        content = (made / names[-1]).read_bytes()
        assert (size, first_crc, crc, zero) == (len(content), len(crcs), zlib.crc32(content), 0)
        crcs += [zlib.crc32(content[at : at + 4096]) for at in range(0, len(content), 4096)]
    layer = ["norm1", "q_proj", "k_proj", "v_proj", "o_proj", "norm2"]
    layer += ["gate_proj", "up_proj", "down_proj"]
    layers = [f"layer{i:02}_{part}" for i in range(2) for part in layer]
    expected = ["embed_tokens", *layers, "final_norm", "lm_head", "tokenizer"]
    assert names == [f"{name}.bin" for name in expected]
    rope_at = 160 + 48 * n_files + 32 * n_tensors
    assert list(at(f"{n_crcs}I", rope_at + 12)) == crcs

    scales = json.loads((made / "quantization_scales.json").read_text())["tensors"]
    assert list(scales) == expected[:-1]
    for i, name in enumerate(expected[:-1]):
        entry = at("HBBIIIIiII", 160 + 48 * n_files + 32 * i)
        rows_cols = scales[name]["shape"] if len(scales[name]["shape"]) == 2 else [1, 24]
        dtype = 2 if "norm" in name else 1
        multiplier, exponent = scales[name]["multiplier"], scales[name]["exponent"]
        assert entry == (i, dtype, 0, *rows_cols, 0, multiplier, exponent, 0, 0)
        assert scales[name]["scale"] == multiplier * 2.0**exponent


def test_manifest_is_the_specification(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("tinyllm-package", 1)
    listed = {file["name"]: file for file in manifest["files"]}
    assert sorted([*listed, "manifest.json"]) == sorted(path.name for path in made.iterdir())
    lines = []
    for name, file in sorted(listed.items()):
        content = (made / name).read_bytes()
        chunks = [content[at : at + 4096] for at in range(0, len(content), 4096)]
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["crc32"] == f"{zlib.crc32(content):08x}"
        assert file["chunks"] == [f"{zlib.crc32(chunk):08x}" for chunk in chunks]
        if name != "descriptor.bin":
            lines.append(f"{name} {len(content)} {file['sha256']}\n")
    fingerprint = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert manifest["fingerprint"] == fingerprint


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9000), max_size=6))
@example([4096, 4096])
@example([])
def test_checksums_do_not_depend_on_the_pieces(sizes: list[int]) -> None:
    data = np.random.default_rng(1).bytes(sum(sizes))
    checksums = Checksums()
    at = 0
    for size in sizes:
        checksums.update(data[at : at + size])
        at += size
    entry = checksums.entry("x")
    chunks = tuple(zlib.crc32(data[at : at + 4096]) for at in range(0, len(data), 4096))
    assert (entry.size, entry.crc32, entry.chunks) == (len(data), zlib.crc32(data), chunks)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()


def test_tensors_and_files_are_what_is_on_disk(made: Path) -> None:
    package = Package.open(made)
    norm, q = package.tensor(1), package.tensor(2)
    assert np.array_equal(norm, np.fromfile(made / "layer00_norm1.bin", "<i2"))
    assert np.array_equal(q.ravel(), np.fromfile(made / "layer00_q_proj.bin", "|i1"))
    assert q.shape == (24, 24)
    with pytest.raises(ValueError, match="read-only"):
        q[0, 0] = 1
    for path in made.iterdir():
        assert package.read_file(path.name) == path.read_bytes()
    with pytest.raises(InputError, match=r"does not list \.\./secret"):
        package.read_file("../secret")


# --- What is damaged ------------------------------------------------------------------------------


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_is_named_with_file_and_chunk(package: Path) -> None:
    flip(package / "embed_tokens.bin", 4096 + 7, bit=6)
    with pytest.raises(
        InputError, match=r"embed_tokens\.bin is damaged in chunk 1 \(bytes 4096 to 7199\)"
    ):
        Package.open(package)
    assert Package.open(package, verify=False).tensor(0).shape == (300, 24)


def test_a_flipped_bit_in_any_file_is_named(package: Path) -> None:
    for path in sorted(package.iterdir()):
        size = path.stat().st_size
        for at in {0, size // 2, size - 1}:
            flip(path, at, bit=1)
            with pytest.raises(InputError, match=re.escape(path.name)):
                Package.open(package)
            flip(path, at, bit=1)
    assert Package.open(package)


@pytest.mark.parametrize("verify", [True, False])
def test_size_and_presence(package: Path, verify: bool) -> None:
    path = package / "lm_head.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"7199 bytes long, and manifest\.json says 7200"):
        Package.open(package, verify)
    path.unlink()
    with pytest.raises(InputError, match=r"lm_head\.bin is missing"):
        Package.open(package, verify)
    path.mkdir()
    with pytest.raises(InputError, match=r"lm_head\.bin is missing"):
        Package.open(package, verify)


def test_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Package.open(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Package.open(tmp_path)


def changed_bytes(data: bytes) -> Iterator[bytes]:
    """Every byte with one bit flipped, the bit going round."""
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        yield bytes(changed)


def test_every_flipped_byte_of_a_descriptor_is_refused(made: Path) -> None:
    data = (made / "descriptor.bin").read_bytes()
    for changed in changed_bytes(data):
        with pytest.raises(InputError):
            parse_descriptor(changed)


def test_every_field_of_a_descriptor_is_checked_or_read(made: Path) -> None:
    """With the checksum made right again: what is not refused gives back the changed bytes."""
    data = (made / "descriptor.bin").read_bytes()
    refused = 0
    for changed in changed_bytes(data[:-4]):
        sealed = changed + struct.pack("<I", zlib.crc32(changed))
        try:
            model = parse_descriptor(sealed)
        except InputError:
            refused += 1
        else:
            assert pack_descriptor(model) == sealed
    assert refused > 500


@pytest.mark.parametrize("length", [0, 3, 4, 159, 160, 163, 164, 200, -1])
def test_truncated_descriptor(made: Path, length: int) -> None:
    with pytest.raises(InputError):
        parse_descriptor((made / "descriptor.bin").read_bytes()[:length])


@settings(max_examples=200)
@given(st.data())
def test_any_descriptor_is_read_or_refused(made: Path, data: st.DataObject) -> None:
    changed = bytearray((made / "descriptor.bin").read_bytes()[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 39)) * 4
        word = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1])
        struct.pack_into("<I", changed, at, data.draw(word))
    sealed = bytes(changed) + struct.pack("<I", zlib.crc32(changed))
    try:
        model = parse_descriptor(sealed)
    except InputError:
        return
    assert pack_descriptor(model) == sealed


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    """A package of one layer with a tied head, to damage."""
    path = save_llama2c(tmp_path / "m.bin", dataclasses.replace(TIED, vocab_size=260))
    quantize_checkpoint(load_checkpoint(path), tmp_path / "smallest")
    return tmp_path / "smallest"


def test_every_flipped_byte_of_a_manifest_is_refused_or_changes_nothing(smallest: Path) -> None:
    path = smallest / "manifest.json"
    data = path.read_bytes()
    facts = pack_descriptor(Package.open(smallest).model)
    survivors = set()
    for at, changed in enumerate(changed_bytes(data)):
        path.write_bytes(changed)
        try:
            found = Package.open(smallest, verify=False)
        except InputError:
            continue
        survivors.add(at)
        assert pack_descriptor(found.model) == facts
    generator = data.index(b'"host ') + 1
    assert survivors <= {*range(generator, data.index(b'"', generator))}


@pytest.mark.parametrize(
    ("name", "step"), [("model_config.json", 1), ("quantization_scales.json", 9)]
)
def test_every_flipped_byte_of_the_json_files_is_refused(
    smallest: Path, name: str, step: int
) -> None:
    path = smallest / name
    for changed in islice(changed_bytes(path.read_bytes()), 0, None, step):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=rf"{re.escape(name)} is damaged in chunk 0"):
            Package.open(smallest, verify=False)


def swap(model: ModelFacts, index: int, **changes: Any) -> dict[str, Any]:
    tensors = list(model.tensors)
    tensors[index] = dataclasses.replace(tensors[index], **changes)
    return {"tensors": tuple(tensors)}


def rename(model: ModelFacts, index: int, **changes: Any) -> dict[str, Any]:
    files = list(model.files)
    files[index] = dataclasses.replace(files[index], **changes)
    return {"files": tuple(files)}


Change = Callable[[ModelFacts], dict[str, Any]]


def reseal(package: Path, name: str, content: object) -> None:
    """Puts other content into a file, and its sums into manifest and descriptor."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (package / name).write_bytes(data)
    manifest = json.loads((package / "manifest.json").read_text())
    checksums = Checksums()
    checksums.update(data)
    entry = checksums.entry(name)
    lines = []
    for file in sorted(manifest["files"], key=lambda file: str(file["name"])):
        if file["name"] == name:
            file["size"], file["sha256"] = entry.size, entry.sha256
            file["crc32"] = f"{entry.crc32:08x}"
            file["chunks"] = [f"{crc:08x}" for crc in entry.chunks]
        if file["name"] != "descriptor.bin":
            lines.append(f"{file['name']} {file['size']} {file['sha256']}\n")
    fingerprint = hashlib.sha256("".join(lines).encode())
    manifest["fingerprint"] = fingerprint.hexdigest()
    (package / "manifest.json").write_text(json.dumps(manifest))
    if name != "descriptor.bin":
        descriptor = bytearray((package / "descriptor.bin").read_bytes()[:-4])
        descriptor[96:128] = fingerprint.digest()
        sealed = bytes(descriptor) + struct.pack("<I", zlib.crc32(descriptor))
        reseal(package, "descriptor.bin", sealed)


@pytest.mark.parametrize(
    ("name", "keys", "value", "match"),
    [
        ("model_config.json", ["name"], "other", "disagree about name"),
        ("model_config.json", ["vocab_size"], 301, "disagree about the sizes"),
        ("model_config.json", ["rope_theta"], 10001.0, "disagree about rope_theta"),
        ("model_config.json", ["rms_norm_eps"], 2e-5, "disagree about rms_norm_eps"),
        ("model_config.json", ["eos_token_id"], 3, "disagree about eos_token_id"),
        ("model_config.json", ["add_bos_token"], False, "disagree about add_bos_token"),
        ("model_config.json", ["tie_word_embeddings"], True, "disagree about tie_word"),
        ("model_config.json", ["version"], 2, "format version 2"),
        ("model_config.json", ["format"], "x", "is not a tinyllm-config file"),
        ("model_config.json", ["more"], 1, 'unknown field "more"'),
        ("quantization_scales.json", ["tensors", "lm_head", "multiplier"], 2**23, "lm_head"),
        ("quantization_scales.json", ["tensors", "lm_head", "scale"], 0.5, "lm_head"),
        ("quantization_scales.json", ["tensors", "lm_head", "shape"], [1, 2], "lm_head"),
        ("quantization_scales.json", ["tensors", "lm_head", "file"], "x.bin", "lm_head"),
        ("quantization_scales.json", ["tensors", "more"], {}, 'unknown field "more"'),
        ("quantization_scales.json", ["version"], 2, "format version 2"),
    ],
)
def test_files_that_disagree(
    package: Path, name: str, keys: list[str], value: object, match: str
) -> None:
    content = json.loads((package / name).read_text())
    reseal(package, name, content)  # sealing alone is not what is refused
    assert Package.open(package)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    reseal(package, name, content)
    with pytest.raises(InputError, match=match):
        Package.open(package)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: {"fingerprint": bytes(32)}, "disagree about the fingerprint"),
        (lambda _: {"name": "other"}, "disagree about the model's name"),
        (lambda _: {"eos": 3}, "disagree about eos_token_id"),
        (lambda m: swap(m, 2, scale=Scale(1 << 23, -30)), "disagree about layer00_q_proj"),
        (lambda m: rename(m, 0, crc32=1), r"disagree about embed_tokens\.bin"),
        (lambda m: {"crcs": m.crcs ^ np.uint32(1)}, r"disagree about embed_tokens\.bin"),
    ],
)
def test_descriptor_of_another_package(
    package: Path, model: ModelFacts, change: Change, match: str
) -> None:
    other = dataclasses.replace(model, **change(model))
    reseal(package, "descriptor.bin", pack_descriptor(other))
    with pytest.raises(InputError, match=match):
        Package.open(package)


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (["version"], 2, "format version 2"),
        (["format"], "other", "not a tinyllm-package"),
        (["chunk_bytes"], 512, "chunk_bytes is not 4096"),
        (["name"], "other", "disagree about the model's name"),
        (["files"], [], "fingerprint is not that"),
        (["files", 0, "name"], "../x.bin", "is no name of a package's file"),
        (["files", 0, "name"], "manifest.json", "is no name of a package's file"),
        (["files", 1, "name"], "embed_tokens.bin", "lists a file twice"),
        (["files", 0, "size"], 10**12, "allowed"),
        (["files", 0, "size"], 0, "allowed"),
        (["files", 0, "chunks"], [], "has 0 chunks, not 2"),
        (["files", 0, "crc32"], "ABCDEF01", "small hex digits"),
        (["files", 0, "crc32"], 7, "a text is wanted"),
        (["files", 0, "chunks"], [7, 7], "small hex digits"),
        (["fingerprint"], "0" * 64, "fingerprint is not that"),
        (["more"], 1, 'unknown field "more"'),
    ],
)
def test_manifest_is_refused(package: Path, keys: list[Any], value: object, match: str) -> None:
    path = package / "manifest.json"
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match):
        Package.open(package)


@settings(max_examples=200)
@given(st.data())
def test_any_manifest_is_read_or_refused(made: Path, data: st.DataObject) -> None:
    whole = (made / "manifest.json").read_bytes()[:900]
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 8))
    changed = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + cut :]
    with pytest.raises(InputError):
        parse_manifest(changed)


# --- The facts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: {"vocab": 0}, "vocabulary is 0"),
        (lambda _: {"vocab": 131073}, "vocabulary is 131073"),
        (lambda _: {"hidden": 32769}, "hidden size"),
        (lambda _: {"ffn": 65537}, "feed-forward size"),
        (lambda _: {"layers": 1001}, "number of layers"),
        (lambda _: {"head_dim": 7}, "an even one"),
        (lambda _: {"head_dim": 258}, "head size is 258"),
        (lambda _: {"heads": 65536}, "size of all heads"),
        (lambda _: {"kv_heads": 3}, "cannot share"),
        (lambda _: {"context": 65536}, "context is 65536"),
        (lambda _: {"vocab": 131072, "hidden": 32768}, "beyond 4 GB"),
        (lambda _: {"bos": 300}, "BOS token 300"),
        (lambda _: {"eos": -2}, "EOS token -2"),
        (lambda _: {"bos": -1}, "BOS token that it does not have"),
        (lambda _: {"eps_m": (1 << 30) - 1}, "epsilon"),
        (lambda _: {"eps_e": -47}, "epsilon's exponent"),
        (lambda _: {"eps_e": -202}, "epsilon's exponent"),
        (lambda _: {"attn_scale": Scale((1 << 23) - 1, 0)}, "scale of its attention"),
        (lambda _: {"attn_scale": Scale(1 << 23, 201)}, "scale of its attention"),
        (lambda _: {"rope_freq": np.zeros(2, np.uint32)}, "rotary frequency"),
        (lambda _: {"fingerprint": b"x"}, "fingerprint"),
        (lambda _: {"name": "x" * 32}, "name is not 31"),
        (lambda _: {"name": "a\x1b[2J"}, "name is not 31"),
        (lambda m: {"tensors": m.tensors[:-1]}, "has 20 tensors, not 21"),
        (lambda m: {"crcs": m.crcs[:-1]}, "checksums of chunks"),
        (lambda m: swap(m, 2, rows=23), "layer00_q_proj has not the shape"),
        (lambda m: swap(m, 2, dtype=DType.INT16), "layer00_q_proj has not the shape or type"),
        (lambda m: swap(m, 2, offset=1), "layer00_q_proj reaches beyond"),
        (lambda m: swap(m, 2, file=99), "file 99 of 22"),
        (lambda m: swap(m, 2, file=5), "layer00_q_proj is not in"),
        (lambda m: swap(m, 2, scale=Scale(1 << 24, 0)), "scale of layer00_q_proj"),
        (lambda m: swap(m, 1, scale=Scale((1 << 23) + 1, 0)), "no power of two"),
        (lambda m: rename(m, 0, name=".embed"), "'.embed' is no file name"),
        (lambda m: rename(m, 0, name="a/b"), "'a/b' is no file name"),
        (lambda m: rename(m, 0, name="layer00_norm1.bin"), "same name"),
        (lambda m: rename(m, 0, name="other.bin"), "files are not those"),
        (lambda m: rename(m, 0, size=0), "has 0 bytes"),
        (lambda m: rename(m, 1, first_crc=1), "do not follow"),
    ],
)
def test_facts_are_checked(model: ModelFacts, change: Change, match: str) -> None:
    check_facts(model)
    with pytest.raises(InputError, match=match):
        check_facts(dataclasses.replace(model, **change(model)))


@pytest.mark.parametrize("shape", [SMALL, TIED])
def test_descriptor_round_trip(tmp_path: Path, shape: Shape) -> None:
    path = save_llama2c(tmp_path / "m.bin", shape)
    report = quantize_checkpoint(load_checkpoint(path), tmp_path / "out")
    data = (tmp_path / "out" / "descriptor.bin").read_bytes()
    model = parse_descriptor(data)
    assert pack_descriptor(model) == data
    assert model.files == report.model.files
    assert model.tensors == report.model.tensors
    assert model.tied == shape.tie_word_embeddings
    assert isinstance(model.files[0], FileEntry)
    assert isinstance(model.tensors[0], TensorEntry)


# --- The constants --------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.floats(min_value=2.0**-120, max_value=2.0**120))
@example(1.0)
@example(float(np.nextafter(np.float32(2), np.float32(0))))
@example(2 - 2.0**-30)
def test_a_scale_is_the_nearest_float32(value: float) -> None:
    scale = Scale.nearest(value)
    assert 1 << 23 <= scale.m < 1 << 24
    assert scale.value == float(np.float32(value))


@settings(max_examples=100)
@given(st.floats(min_value=1e-30, max_value=1))
@example(1e-5)
@example(2.0**-20)
@example(2.0**-19)
def test_epsilon(value: float) -> None:
    m, e = epsilon(value)
    assert 1 << 30 <= m < 1 << 32
    assert e % 2 == 0
    assert abs(math.ldexp(m, e) - value) <= math.ldexp(0.5, e)


def test_no_epsilon() -> None:
    assert epsilon(0) == (0, 0)


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1.0, 1e6])
@pytest.mark.parametrize("head_dim", [2, 8, 96, 256])
def test_rope_frequencies(theta: float, head_dim: int) -> None:
    frequencies = rope_frequencies(theta, head_dim)
    pairs = np.arange(head_dim // 2)
    real = 2.0**32 / (2 * np.pi) * theta ** (-2.0 * pairs / head_dim)
    assert frequencies.dtype == np.uint32
    assert np.abs(frequencies - real).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("head_dim", [2, 8, 96, 128, 256])
def test_attention_scale(head_dim: int) -> None:
    scale = attention_scale(head_dim)
    real = math.log2(math.e) / math.sqrt(head_dim)
    assert abs(scale.value - real) <= math.ldexp(0.5, scale.e) * (1 + 1e-6)
