"""Tokenizers in: three kinds of files, tokenizer.bin, and everything that is refused."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizer_tools import (
    E_FORMAT,
    E_LIMIT,
    E_VERSION,
    TOKENIZER_C,
    model_proto,
    small_spec,
    without_bytes,
)

from host.errors import InputError
from host.tokenizer import Piece, PieceType, Tokenizer, TokenizerSpec, load_tokenizer
from host.tokenizer.binary import MAX_RUN, fnv1a

TEXT = "ab abba \u2581b\U0001f600 c  "
SMALL = ["\u2581", "a", "b", "ab", "ba", "\u2581a", "abba", "\u2581ab", "\U0001f600", "c"]


def refusal(run: Callable[[], object]) -> str:
    """The message with which a call refuses: one sentence and a next step."""
    with pytest.raises(InputError) as caught:
        run()
    assert caught.value.next_step
    return str(caught.value)


# --- tokenizer.model ------------------------------------------------------------------------------


@pytest.fixture
def proto() -> Any:
    return model_proto(small_spec(SMALL, byte_fallback=True))


@pytest.fixture
def load_proto(tmp_path: Path) -> Callable[[Any], TokenizerSpec]:
    def load(proto: Any) -> TokenizerSpec:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        return load_tokenizer(path)

    return load


Load = Callable[[Any], TokenizerSpec]


@pytest.mark.shared
def test_the_surrogate_s_model(surrogate_dir: Path) -> None:
    spec = load_tokenizer(surrogate_dir)
    oracle = SentencePieceProcessor(model_file=str(surrogate_dir / "tokenizer.model"))
    assert spec.vocab_size == oracle.vocab_size() == 32_000
    assert [p.text.decode() for p in spec.pieces] == [oracle.id_to_piece(i) for i in range(32_000)]
    assert (spec.bos, spec.eos, spec.unk) == (oracle.bos_id(), oracle.eos_id(), oracle.unk_id())
    assert spec.byte_ids == tuple(range(3, 259))
    assert (spec.add_prefix_space, spec.byte_fallback, spec.add_bos) == (True, True, True)


def test_a_model_of_each_flag(load_proto: Load) -> None:
    for fallback in (True, False):
        for prefix in (True, False):
            spec = replace(small_spec(SMALL, byte_fallback=fallback), add_prefix_space=prefix)
            loaded = load_proto(model_proto(spec))
            assert (loaded.byte_fallback, loaded.add_prefix_space) == (fallback, prefix)
            assert Tokenizer(loaded).encode(TEXT) == Tokenizer(spec).encode(TEXT)


def test_the_config_says_whether_bos_is_added(load_proto: Load, proto: Any, tmp_path: Path) -> None:
    assert load_proto(proto).add_bos is True
    for value in (True, False):
        config = json.dumps({"add_bos_token": value})
        (tmp_path / "tokenizer_config.json").write_text(config)
        assert load_proto(proto).add_bos is value
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "not valid JSON" in refusal(lambda: load_proto(proto))


def test_the_model_is_preferred_in_a_folder(load_proto: Load, proto: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("not even JSON")
    spec = load_proto(proto)
    assert load_tokenizer(tmp_path) == spec


def _set(part: str, field: str, value: object) -> Callable[[Any], None]:
    return lambda proto: setattr(getattr(proto, part), field, value)


def _piece(**fields: Any) -> Callable[[Any], None]:
    return lambda proto: proto.pieces.add(**fields)


UNSUPPORTED: dict[str, Callable[[Any], object]] = {
    "model type unigram": _set("trainer_spec", "model_type", 1),
    "model type word": _set("trainer_spec", "model_type", 3),
    "model type char": _set("trainer_spec", "model_type", 4),
    "treat_whitespace_as_suffix": _set("trainer_spec", "treat_whitespace_as_suffix", True),
    "unk_surface": _set("trainer_spec", "unk_surface", "?"),
    "remove_extra_whitespaces": _set("normalizer_spec", "remove_extra_whitespaces", True),
    "escape_whitespaces": _set("normalizer_spec", "escape_whitespaces", False),
    "normalizer identity": _set("normalizer_spec", "precompiled_charsmap", b"map"),
    "a denormalizer": _set("denormalizer_spec", "precompiled_charsmap", b"map"),
    "user-defined pieces": _piece(piece="x", type=4),
    "unused pieces": _piece(piece="x", type=5),
    "control pieces of a single character": _piece(piece="x", type=3),
    "defined twice": _piece(piece="ab", score=-1),
    "the score nan": _piece(piece="x", score=float("nan")),
    "the score -inf": _piece(piece="x", score=float("-inf")),
    "of type unknown": _piece(piece="<unk2>", type=2),
    "of type byte and names none": _piece(piece="<0x1>", type=6),
    "255 byte pieces": lambda proto: proto.pieces.pop(7),
    "256 byte pieces where none": _set("trainer_spec", "byte_fallback", False),
    "no unknown piece": lambda proto: proto.pieces.pop(0),
    "0 bytes long": _piece(piece=""),
    "no pieces": lambda proto: proto.ClearField("pieces"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_that_is_not_supported_is_refused_by_name(
    load_proto: Load, proto: Any, name: str
) -> None:
    load_proto(proto)
    UNSUPPORTED[name](proto)
    assert name in refusal(lambda: load_proto(proto))


def test_a_model_is_read_whole_or_refused(load_proto: Load, proto: Any) -> None:
    data: bytes = proto.SerializeToString()
    # The settings come last: without them the defaults hold, which are not supported.
    for size in range(0, len(data), 3):
        assert refusal(lambda size=size: load_proto(data[:size]))  # type: ignore[misc]


def test_a_model_that_ends_inside_its_last_piece_is_refused(load_proto: Load, proto: Any) -> None:
    last = 2 + proto.pieces[-1].ByteSize()
    pieces = type(proto)(pieces=proto.pieces).SerializeToString()
    proto.ClearField("pieces")
    data: bytes = proto.SerializeToString() + pieces
    whole = load_proto(data)
    for cut in range(1, last):
        message = refusal(lambda cut=cut: load_proto(data[:-cut]))  # type: ignore[misc]
        assert "breaks off" in message
    assert load_proto(data[:-last]).vocab_size == whole.vocab_size - 1


def test_flipped_bits_of_a_model_never_crash(load_proto: Load, proto: Any) -> None:
    data = bytearray(proto.SerializeToString())
    rng = random.Random(5)
    refused = 0
    for _ in range(1500):
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[at] ^= bit
        try:
            load_proto(bytes(data))
        except InputError:
            refused += 1
        data[at] ^= bit
    assert refused > 300


# --- llama2.c's .bin ------------------------------------------------------------------------------


@pytest.mark.shared
def test_llama2c_s_file(stories260k_tokenizer: Path, load_proto: Load) -> None:
    spec = load_tokenizer(stories260k_tokenizer)
    assert (spec.vocab_size, spec.unk, spec.bos, spec.eos) == (512, 0, 1, 2)
    assert spec.pieces[259] == Piece("\u2581t".encode(), PieceType.NORMAL, 0)
    assert spec.byte_ids == tuple(range(3, 259))
    assert not any(b" " in piece.text for piece in spec.pieces)
    assert load_proto(model_proto(spec)) == spec


@pytest.mark.shared
def test_a_cut_llama2c_file_is_refused(stories260k_tokenizer: Path, tmp_path: Path) -> None:
    data = stories260k_tokenizer.read_bytes()
    path = tmp_path / "tokenizer.bin"
    whole = set()
    at = 4
    while at < len(data):
        at += 8 + struct.unpack_from("<i", data, at + 4)[0]
        whole.add(at)
    for size in range(len(data) - 100, len(data)):
        path.write_bytes(data[:size])
        if size in whole:
            assert load_tokenizer(path).vocab_size < 512
        else:
            assert "breaks off in piece" in refusal(lambda: load_tokenizer(path))
    for size in range(0, len(data) - 100, 37):
        path.write_bytes(data[:size])
        if size not in whole:
            assert "not a llama2.c tokenizer" in refusal(lambda: load_tokenizer(path))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0, "longest piece has 0"),
        (0, -1, "longest piece has -1"),
        (0, 1 << 30, "longest piece has"),
        (4, 0x7FC00000, "score nan"),
        (8, 0, "piece 0 is 0 bytes"),
        (8, -5, "piece 0 is -5 bytes"),
        (8, 1 << 30, "piece 0 is"),
        (12, 0x41414141, "piece 0 is not <unk>"),
        (12, -1, "piece 0 is not valid UTF-8"),
    ],
)
def test_a_damaged_llama2c_file_is_refused(
    stories260k_tokenizer: Path, tmp_path: Path, at: int, value: int, message: str
) -> None:
    data = bytearray(stories260k_tokenizer.read_bytes())
    struct.pack_into("<I", data, at, value & 0xFFFFFFFF)
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    assert message in refusal(lambda: load_tokenizer(path))


# --- What is no tokenizer at all ------------------------------------------------------------------


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: load_tokenizer(tmp_path / "x.model"))
    assert "no tokenizer.model" in refusal(lambda: load_tokenizer(tmp_path))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer.bin", "tokenizer.txt"):
        for data in (b"", b"\0", b"\x80\x02}q\0.", b"PK\3\4" + bytes(40)):
            path = tmp_path / name
            path.write_bytes(data)
            assert name in refusal(lambda path=path: load_tokenizer(path))  # type: ignore[misc]


def test_facts_that_contradict_each_other_are_refused() -> None:
    spec = small_spec(SMALL)
    for changes, message in (
        ({"unk": -1}, "piece 0 is of type unknown, and unk is -1"),
        ({"unk": 1}, "piece 0 is of type unknown, and unk is 1"),
        ({"unk": 3, "pieces": spec.pieces[1:]}, "no unknown piece"),
        ({"bos": 3}, "BOS token 3 is not a control piece"),
        ({"eos": 99}, "EOS token 99 is not a control piece"),
        ({"bos": -1}, "begins texts with BOS"),
        ({"byte_fallback": True}, "0 byte pieces where all 256"),
        ({"pieces": ()}, "has 0 pieces"),
        ({"pieces": (*spec.pieces, Piece(b"\xff"))}, "not valid UTF-8"),
        ({"pieces": (*spec.pieces, Piece(b"a" * 65536))}, "65536 bytes long"),
        ({"pieces": (*spec.pieces, Piece(b"x", PieceType.NORMAL, 1 << 32))}, "the rank"),
    ):
        with pytest.raises(InputError, match=message):
            replace(spec, **changes)


# --- tokenizer.bin --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ask_c(clang: str, compile_c: Any) -> Callable[..., list[Any]]:
    """Runs cases through the C code under sanitizers."""
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [Path(__file__).with_name("tokenizer_cases.c"), TOKENIZER_C]
    program = compile_c("tokenizer-cases", clang, flags, sources)

    def ask(files: list[bytes], text: bytes, tokens: list[int]) -> list[Any]:
        ids = struct.pack(f"<{len(tokens)}I", *tokens)
        cases = b"".join(
            struct.pack("<III", len(file), len(text), len(tokens)) + file + text + ids
            for file in files
        )
        result = subprocess.run([program], input=cases, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()[-3000:]
        answers, at, data = [], 0, result.stdout
        for _ in files:
            (status,) = struct.unpack_from("<i", data, at)
            at += 4
            if status:
                answers.append(status)
                continue
            (count,) = struct.unpack_from("<i", data, at)
            encoded = list(struct.unpack_from(f"<{max(count, 0)}I", data, at + 4))
            at += 4 + 4 * len(encoded)
            (size,) = struct.unpack_from("<i", data, at)
            at += 4 + size
            answers.append((encoded, data[at - size : at].decode()))
        assert at == len(data)
        return answers

    return ask


def in_python(file: bytes, text: str, tokens: list[int]) -> Any:
    try:
        twin = Tokenizer(TokenizerSpec.from_bin(file))
    except InputError:
        return None
    return twin.encode(text), twin.decode(tokens)


def check_like_python(ask_c: Callable[..., list[Any]], files: list[bytes], count: int) -> int:
    """C and Python accept the same files and read them the same; returns how many."""
    tokens = [token % count for token in (4, 7, 1, 0, 9, 3, 205, 206, 207, 5, 230, 8, 170, 195)]
    answers = ask_c(files, TEXT.encode(), tokens)
    accepted = 0
    for file, answer in zip(files, answers, strict=True):
        wanted = in_python(file, TEXT, tokens)
        assert (None if isinstance(answer, int) else answer) == wanted
        accepted += wanted is not None
    return accepted


@pytest.fixture(params=["bytes", "unk"])
def small(request: pytest.FixtureRequest) -> TokenizerSpec:
    return small_spec(SMALL, byte_fallback=request.param == "bytes")


def test_a_spec_comes_back_as_it_was(small: TokenizerSpec) -> None:
    for prefix in (True, False):
        spec = replace(small, add_prefix_space=prefix)
        assert TokenizerSpec.from_bin(spec.to_bin()) == spec
        assert spec.to_bin() == spec.to_bin()
    bare = replace(small, bos=-1, eos=-1, add_bos=False)
    assert TokenizerSpec.from_bin(bare.to_bin()) == bare


@pytest.mark.shared
def test_real_vocabularies_come_back(surrogate_dir: Path, stories260k_tokenizer: Path) -> None:
    for path in (surrogate_dir, stories260k_tokenizer):
        spec = load_tokenizer(path)
        assert TokenizerSpec.from_bin(spec.to_bin()) == spec
    bare = without_bytes(spec)
    assert TokenizerSpec.from_bin(bare.to_bin()) == bare


def test_the_bytes_are_those_of_the_format() -> None:
    data = small_spec(["a"]).to_bin()
    assert data[:64] == struct.pack(
        "<4sHHIIIIIiiiI20x", b"TTOK", 1, 64, len(data), 4, 8, 13, 0b101, 1, 2, 0, 5
    )
    assert data[64:112] == b"".join(
        struct.pack("<IHBBI", *piece)
        for piece in ((0, 5, 2, 0, 0), (5, 3, 3, 0, 0), (8, 4, 3, 0, 0), (12, 1, 1, 0, 0))
    )
    slots = [0xFFFFFFFF] * 8
    slots[0xE40C292C % 8] = 3  # the published FNV-1a of "a"
    assert data[112:144] == struct.pack("<8I", *slots)
    assert data[144:1168] == b"\xff" * 1024
    assert data[1168:] == b"<unk><s></s>a"


def test_every_byte_changed_is_refused_or_means_the_same(
    small: TokenizerSpec, ask_c: Callable[..., list[Any]]
) -> None:
    data = small.to_bin()
    rng = random.Random(7)
    files = []
    for at in range(len(data)):
        mask = 1 << rng.randrange(8)
        files.append(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
    accepted = check_like_python(ask_c, files, small.vocab_size)
    # Ranks, flags, special ids and texts of control pieces may be others; structure may not.
    assert 0 < accepted < len(files) // 5


def test_every_cut_is_refused(small: TokenizerSpec, ask_c: Callable[..., list[Any]]) -> None:
    data = small.to_bin()
    files = [data[:size] for size in range(len(data))] + [data + b"\0"]
    assert check_like_python(ask_c, files, small.vocab_size) == 0


def test_cuts_that_state_their_size_are_refused(
    small: TokenizerSpec, ask_c: Callable[..., list[Any]]
) -> None:
    data = small.to_bin()
    files = [data[:8] + struct.pack("<I", n) + data[12:n] for n in range(64, len(data))]
    assert check_like_python(ask_c, files, small.vocab_size) == 0


EXTREMES = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 17, 1 << 20, 1 << 30)


def test_extreme_numbers_everywhere(small: TokenizerSpec, ask_c: Callable[..., list[Any]]) -> None:
    data = small.to_bin()
    strings = sum(len(piece.text) for piece in small.pieces)
    tables = [*range(0, 64 + 12 * 20, 4), *range(304, len(data) - strings - 4, 28)]
    files = [
        data[:at] + struct.pack("<I", value) + data[at + 4 :] for at in tables for value in EXTREMES
    ]
    assert check_like_python(ask_c, files, small.vocab_size) > 0


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [(0, 0, E_FORMAT), (4, 2, E_VERSION), (12, 131073, E_LIMIT), (12, 0, E_FORMAT)],
)
def test_the_device_says_what_is_wrong(
    ask_c: Callable[..., list[Any]], at: int, value: int, error: int
) -> None:
    data = bytearray(small_spec(SMALL).to_bin())
    struct.pack_into("<I" if at != 4 else "<H", data, at, value)
    assert ask_c([bytes(data)], b"a", [0]) == [error]


def test_a_table_without_an_empty_slot_ends(ask_c: Callable[..., list[Any]]) -> None:
    data = bytearray(small_spec(SMALL).to_bin())
    n, n_slots = struct.unpack_from("<II", data, 12)
    slots_at = 64 + 12 * n
    for slot in range(n_slots):
        if struct.unpack_from("<I", data, slots_at + 4 * slot)[0] == 0xFFFFFFFF:
            struct.pack_into("<I", data, slots_at + 4 * slot, n - 1)
    assert check_like_python(ask_c, [bytes(data)], n) == 0


def test_a_run_of_slots_that_is_too_long_is_refused(ask_c: Callable[..., list[Any]]) -> None:
    """A thousand strings of one hash would make each look-up a thousand comparisons."""
    texts: list[str] = []
    number = 0
    while len(texts) < MAX_RUN + 1:
        text = f"x{number}"
        number += 1
        if fnv1a(text.encode()) % 4096 < 32:
            texts.append(text)
    spec = small_spec(texts)
    data = spec.to_bin()
    n, n_slots = struct.unpack_from("<II", data, 12)
    assert n_slots > 2048
    slots = [0xFFFFFFFF] * 4096
    for index in range(3, n):
        slot = fnv1a(spec.pieces[index].text) % 4096
        while slots[slot] != 0xFFFFFFFF:
            slot = (slot + 1) % 4096
        slots[slot] = index
    head, tail = bytearray(data[: 64 + 12 * n]), data[64 + 12 * n + 4 * n_slots :]
    crowded = bytes(head) + struct.pack("<4096I", *slots) + tail
    crowded = crowded[:8] + struct.pack("<III", len(crowded), n, 4096) + crowded[20:]
    assert check_like_python(ask_c, [data, crowded], n) == 1
