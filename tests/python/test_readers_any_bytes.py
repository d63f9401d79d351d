"""Any bytes in place of a file: read, or refused in one line with the next step; bounded memory.

Each reader gets random bytes and damaged copies of valid files, and things that are no files.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import SMALL, TIED, config_of, save_huggingface, save_llama2c, shard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_tools import model_proto, small_spec

from host.board.contents import Contents, parse_slot, slot_bytes
from host.checkpoint import load_checkpoint
from host.checkpoint.safetensors_file import list_tensors
from host.errors import InputError
from host.package.config import check_scales, parse_config
from host.package.descriptor import parse_descriptor
from host.package.manifest import parse_manifest
from host.package.reader import Package
from host.quantize import quantize_checkpoint
from host.strict_json import MAX_DEPTH, parse_object
from host.tokenizer import load_tokenizer

MEMORY = 8 << 20  # bytes that reading some KB may take at most
SECONDS = 30  # of the processor, for the worst that a limit lets through


@dataclass(frozen=True)
class Reader:
    """A file of a made example, and what reads it."""

    path: Path
    read: Callable[[Path], object]


def _load(path: Path) -> None:
    for _ in load_checkpoint(path).tensors.values():
        pass


def _tensors(path: Path) -> None:
    for tensor in list_tensors(path).values():
        if tensor.dtype in ("F32", "F16", "BF16"):
            tensor.read()


def _tokenizer_json() -> bytes:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "a", "b", "ab"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    added = [{"id": index, "content": pieces[index], "special": True} for index in range(3)]
    model = {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": ["a b"]}
    space = {"type": "Metaspace", "replacement": "\u2581", "split": False}
    single = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    return json.dumps(
        {
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": space,
            "post_processor": {"type": "TemplateProcessing", "single": single},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
            "model": model,
        }
    ).encode()


def _make(folder: Path) -> dict[str, Reader]:
    whole, sharded, models = folder / "whole", folder / "sharded", folder / "models"
    models.mkdir()
    save_huggingface(whole)
    save_huggingface(sharded)
    shard(sharded)
    spec = small_spec(["a", "b", "\u2581", "ab", "\u2581ab"], byte_fallback=True)
    (models / "tokenizer.model").write_bytes(model_proto(spec).SerializeToString())
    (models / "tokenizer.json").write_bytes(_tokenizer_json())
    (models / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}')
    (models / "tokenizer.bin").write_bytes(spec.to_bin())
    llama2c = save_llama2c(folder / "model.bin", TIED)
    package = folder / "package"
    quantize_checkpoint(load_checkpoint(llama2c), package)
    model = Package.open(package).model
    in_package = (
        "manifest.json",
        "descriptor.bin",
        "model_config.json",
        "quantization_scales.json",
        "norm1.bin",
    )

    def content(parse: Callable[[bytes], object]) -> Callable[[Path], object]:
        return lambda path: parse(path.read_bytes())

    def sealed(data: bytes) -> object:
        return parse_descriptor(data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])))

    readers = {
        "safetensors": Reader(whole / "model.safetensors", _tensors),
        "checkpoint": Reader(whole / "config.json", lambda path: _load(path.parent)),
        "index": Reader(sharded / "model.safetensors.index.json", lambda path: _load(path.parent)),
        "tokenizer_config": Reader(
            models / "tokenizer_config.json",
            lambda path: load_tokenizer(path.with_name("tokenizer.json")),
        ),
        "llama2c": Reader(llama2c, _load),
        "llama2c tokenizer": Reader(folder / "tokenizer.bin", load_tokenizer),
        "tokenizer.model": Reader(models / "tokenizer.model", load_tokenizer),
        "tokenizer.json": Reader(models / "tokenizer.json", load_tokenizer),
        "tokenizer.bin": Reader(models / "tokenizer.bin", load_tokenizer),
        "manifest": Reader(package / "manifest.json", content(parse_manifest)),
        "scales": Reader(
            package / "quantization_scales.json", content(lambda data: check_scales(data, model))
        ),
        "package config": Reader(package / "model_config.json", content(parse_config)),
        "descriptor": Reader(package / "descriptor.bin", content(sealed)),
    }
    readers |= {
        f"package's {name}": Reader(package / name, lambda path: Package.open(path.parent))
        for name in in_package
    }
    readers["card's contents"] = Reader(
        package / "manifest.json", lambda path: Contents.of(path.parent)
    )
    return readers


READERS = (
    "safetensors",
    "checkpoint",
    "index",
    "tokenizer_config",
    "llama2c",
    "llama2c tokenizer",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer.bin",
    "manifest",
    "scales",
    "package config",
    "descriptor",
    "package's manifest.json",
    "package's descriptor.bin",
    "package's model_config.json",
    "package's quantization_scales.json",
    "package's norm1.bin",
    "card's contents",
)
BY_CONTENT = ("manifest", "scales", "package config", "descriptor")
BY_PATH = [name for name in READERS if name not in BY_CONTENT]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    made = _make(tmp_path_factory.mktemp("readers"))
    assert set(made) == set(READERS)
    return made


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """The file, to be changed, and as it was afterwards."""
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        kept.rename(path)


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """What the reader refuses with, "" where it does not. Any other exception is a bug."""
    try:
        read(path)
    except InputError as error:
        refused = error
    else:
        return ""
    assert refused.next_step, refused
    assert "\n" not in str(refused), refused
    assert len(str(refused)) < 600 + 3 * len(str(path)), refused
    return str(refused)


def assert_bounded(read: Callable[[Path], object], path: Path) -> None:
    assert min(peak_of(read, path), peak_of(read, path)) < MEMORY


def peak_of(read: Callable[[Path], object], path: Path) -> int:
    """Bytes that the process takes at most meanwhile; now and then not the reader's alone."""
    tracemalloc.start()
    try:
        refusal(read, path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


NUMBERS = (b"-1", b"9" * 30, b"9" * 900, b"1e999", b"NaN", b"[]", b"{}", b"null", b'"\\n"', b"1.5")
WORDS = st.sampled_from([0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Up to three changes such as disks, editors and people who mean harm make."""
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        share = draw(st.floats(0, 1) | st.floats(0, 0.02))
        kind = draw(st.sampled_from(["cut", "put", "insert", "remove", "repeat", "word", "number"]))
        size, data = draw(st.integers(0, 60)), draw(st.binary(min_size=1, max_size=8))
        word, number = draw(WORDS), draw(st.sampled_from(NUMBERS))
        steps.append((share, kind, size, data, word, number))

    def apply(whole: bytes) -> bytes:
        for share, kind, size, data, word, number in steps:
            at = int(share * len(whole))
            before, after = whole[:at], whole[at:]
            if kind == "cut":
                whole = before
            elif kind == "put":
                whole = before + data + after[len(data) :]
            elif kind == "insert":
                whole = before + data + after
            elif kind == "remove":
                whole = before + after[size:]
            elif kind == "repeat":
                whole = before + after[:size] + after
            elif kind == "word":
                at -= at % 4
                packed = struct.pack("<Q", word)[: 8 if size % 2 else 4]
                whole = whole[:at] + packed + whole[at + len(packed) :]
            else:  # the next value of JSON is another
                colon = after.find(b":") + 1
                end = min((e for e in map(after.find, (b",", b"}", b"]")) if e > colon), default=0)
                whole = before + after[:colon] + number + after[end:] if end else whole
        return whole

    return apply


FEW = settings(max_examples=60)


@pytest.mark.parametrize("name", READERS)
@FEW
@given(change=damage())
def test_a_damaged_file_is_read_or_refused(
    readers: dict[str, Reader], name: str, change: Callable[[bytes], bytes]
) -> None:
    reader = readers[name]
    whole = reader.path.read_bytes()
    with in_place_of(reader.path) as path:
        path.write_bytes(change(whole))
        refusal(reader.read, path)


@pytest.mark.parametrize("name", READERS)
@FEW
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"[" * 3000)
@example(data=b'{"a":' * 3000)
@example(data=pickle.dumps({"a": 1}))
@example(data=b"PK\x03\x04" + bytes(100))
@example(data=struct.pack("<Q", 2**63) + b"{}")
@example(data=struct.pack("<7i", *[2**31 - 1] * 7))
def test_any_bytes_are_refused_in_bounded_memory(
    readers: dict[str, Reader], name: str, data: bytes
) -> None:
    reader = readers[name]
    with in_place_of(reader.path) as path:
        path.write_bytes(data)
        assert_bounded(reader.read, path)
        if name != "tokenizer_config":  # which takes {} for what it is
            assert refusal(reader.read, path)


def test_what_they_start_from_is_read(readers: dict[str, Reader]) -> None:
    for reader in readers.values():
        assert refusal(reader.read, reader.path) == ""


# --- What is no file ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_PATH)
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "loop", "nothing"])
def test_what_is_no_file_is_refused_at_once(
    readers: dict[str, Reader], name: str, what: str
) -> None:
    reader = readers[name]
    with in_place_of(reader.path) as path:
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what == "device":
            path.symlink_to("/dev/zero")
        elif what == "loop":
            path.symlink_to(path)
        said = refusal(reader.read, path)
        if what == "folder":
            path.rmdir()
    assert said or (name, what) == ("tokenizer_config", "nothing")


@pytest.mark.parametrize("name", BY_PATH)
def test_a_file_that_may_not_be_read_is_refused(
    readers: dict[str, Reader], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = readers[name]

    def forbid(path: Any, *_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", forbid)
    monkeypatch.setattr(Path, "open", forbid)
    assert "is not permitted" in refusal(reader.read, reader.path)


def test_a_package_that_is_cut_short_once_it_is_open(readers: dict[str, Reader]) -> None:
    path = readers["package's norm1.bin"].path
    package = Package.open(path.parent)
    index = [place.key for place in package.model.places].index("norm1")
    whole = path.read_bytes()
    with in_place_of(path):
        path.write_bytes(whole[:-1])
        assert "is shorter than it was" in refusal(lambda _: package.tensor(index), path)


def test_a_checkpoint_that_is_cut_short_once_it_is_open(readers: dict[str, Reader]) -> None:
    path = readers["llama2c"].path
    tensors = load_checkpoint(path).tensors
    whole = path.read_bytes()
    with in_place_of(path):
        path.write_bytes(whole[: len(whole) // 2])
        assert "ends too early" in refusal(lambda _: [*tensors.values()], path)


# --- The worst that the limits let through --------------------------------------------------------


def _long_pieces(count: int, size: int) -> bytes:
    head = _tokenizer_json()[:-2]
    vocab = json.loads(head + b"}}")["model"]["vocab"]
    for index in range(count):
        vocab["a" * size + str(index)] = len(vocab)
    whole = json.loads(head + b"}}")
    whole["model"]["vocab"] = vocab
    return json.dumps(whole).encode()


WORST: dict[str, tuple[str, Callable[[], bytes]]] = {
    "many keys, the last twice": (
        "checkpoint",
        lambda: b"{%s}" % b",".join(b'"%d":0' % (n % 79_999) for n in range(80_000)),
    ),
    "a number of a million digits": ("checkpoint", lambda: b'{"a":%s}' % (b"9" * 1_000_000)),
    "a list of lists": ("checkpoint", lambda: b'{"a":[%s]}' % b",".join([b"[]"] * 300_000)),
    "a header of lists": (
        "safetensors",
        lambda: struct.pack("<Q", 4_000_003) + b"{%s}" % (b'"a":[' + b"[]," * 1_333_331 + b"[]]"),
    ),
    "long pieces": ("tokenizer.json", lambda: _long_pieces(2000, 900)),
    "a piece as long as its file": ("tokenizer.json", lambda: _long_pieces(1, 4_000_000)),
}


@pytest.mark.parametrize("case", WORST)
def test_the_worst_ends_in_bounded_time(readers: dict[str, Reader], case: str) -> None:
    name, make = WORST[case]
    reader = readers[name]
    data = make()
    with in_place_of(reader.path) as path:
        path.write_bytes(data)
        started = time.process_time()
        assert refusal(reader.read, path)
        assert time.process_time() - started < SECONDS


def test_depth_is_the_same_from_any_depth_of_the_caller() -> None:
    """What parses can be shown, however deep the stack is by then."""
    deep = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    with pytest.raises(InputError, match="nested too deep"):
        parse_object(deep, "it", "Do so")
    assert parse_object(deep[5:-1], "it", "Do so").raw("a") is not None


# --- Slots and configurations ---------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(0, 63), st.integers(1, 255))
def test_a_changed_slot_is_none(at: int, bits: int) -> None:
    slot = bytearray(slot_bytes(7, "ab" * 32))
    assert parse_slot(bytes(slot)) == (7, "ab" * 32)
    slot[at] ^= bits
    assert parse_slot(bytes(slot)) is None


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_no_slot(data: bytes) -> None:
    assert parse_slot(data) is None


def test_names_from_a_file_do_not_break_the_sentence(tmp_path: Path) -> None:
    folder = save_huggingface(tmp_path)
    for key in ("rope\nscaling", "\x1b[2J"):
        changed = config_of(SMALL, rope_scaling={"rope_type": key})
        (folder / "config.json").write_text(json.dumps(changed))
        said = refusal(_load, folder)
        assert said.isprintable(), said
