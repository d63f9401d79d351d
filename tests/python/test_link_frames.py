"""Frames: whatever a line brings, in whatever pieces, decodes or is dropped, and nothing raises."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from host.link.frames import MAX_ENCODED, MAX_PAYLOAD, Decoder, Frame, encode

frames = st.builds(
    Frame,
    type=st.integers(0, 255),
    seq=st.integers(0, 255),
    payload=st.binary(max_size=300) | st.binary(min_size=MAX_PAYLOAD, max_size=MAX_PAYLOAD),
)
text = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"x"))


def decode_in_pieces(data: bytes, cuts: Iterable[int], decoder: Decoder) -> list[Frame | bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    found: list[Frame | bytes] = []
    for start, end in itertools.pairwise(edges):
        found.extend(decoder.feed(data[start:end]))
        assert decoder.held <= MAX_ENCODED + 1
    return found


def joined(found: list[Frame | bytes]) -> list[Frame | bytes]:
    """Console text in one piece, wherever the line was cut."""
    result: list[Frame | bytes] = []
    for item in found:
        last = result[-1] if result else None
        if isinstance(item, bytes) and isinstance(last, bytes):
            result[-1] = last + item
        else:
            result.append(item)
    return result


@given(st.lists(st.tuples(text, frames), max_size=5), text, st.lists(st.integers(0, 30000)))
def test_text_and_frames_come_back_in_order_however_the_line_is_cut(
    parts: list[tuple[bytes, Frame]], tail: bytes, cuts: list[int]
) -> None:
    line = b"".join(noise + encode(frame) for noise, frame in parts) + tail
    expected = [item for noise, frame in parts for item in (noise, frame) if item] + [tail] * bool(
        tail
    )
    assert joined(decode_in_pieces(line, cuts, Decoder())) == joined(expected)


@given(st.binary(max_size=10000), st.lists(st.integers(0, 10000), max_size=20))
def test_no_bytes_make_the_decoder_raise_or_grow(data: bytes, cuts: list[int]) -> None:
    whole = [item for item in decode_in_pieces(data, [], Decoder()) if isinstance(item, Frame)]
    cut = [item for item in decode_in_pieces(data, cuts, Decoder()) if isinstance(item, Frame)]
    assert whole == cut


@given(frames, frames, st.data())
def test_a_flipped_bit_costs_that_frame_alone(
    hit: Frame, after: Frame, data: st.DataObject
) -> None:
    line = bytearray(encode(hit))
    at = data.draw(st.integers(1, len(line) - 2))
    line[at] ^= 1 << data.draw(st.integers(0, 7))
    found = list(Decoder().feed(bytes(line) + encode(after)))
    assert found[-1] == after
    assert hit not in found[:-1]


@given(frames, frames, frames, st.data())
def test_a_lost_stretch_costs_at_most_its_frame_and_the_next(
    hit: Frame, after: Frame, last: Frame, data: st.DataObject
) -> None:
    line = encode(hit)
    start = data.draw(st.integers(0, len(line) - 1))
    end = data.draw(st.integers(start + 1, len(line)))
    found = list(Decoder().feed(line[:start] + line[end:] + encode(after) + encode(last)))
    assert found[-1] == last
    if end < len(line):  # the zero behind it is still there
        assert after in found


def test_an_endless_frame_is_held_no_further_than_a_frame_can_be() -> None:
    decoder = Decoder()
    list(decoder.feed(b"\0"))
    for _ in range(100):
        assert list(decoder.feed(b"\x01" * 10000)) == []
        assert decoder.held <= MAX_ENCODED + 1
    good = Frame(1, 2, b"three")
    assert list(decoder.feed(encode(good))) == [good]
    assert decoder.damaged == 1


@pytest.mark.parametrize("length", [0, 1, 5])
def test_what_is_too_short_to_be_a_frame_is_dropped(length: int) -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"\0" + cobs.encode(b"x" * length) + b"\0")) == []
    assert decoder.damaged == 1


def test_a_payload_longer_than_allowed_is_refused_on_both_ends() -> None:
    with pytest.raises(ValueError, match="4128"):
        encode(Frame(1, 1, bytes(MAX_PAYLOAD + 1)))
    body = bytes((1, 1)) + bytes(MAX_PAYLOAD + 1)
    long = b"\0" + cobs.encode(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"
    assert list(Decoder().feed(long)) == []


def test_the_largest_frame_fits_the_limit_that_receivers_have() -> None:
    worst = max(len(encode(Frame(1, 1, bytes([b]) * MAX_PAYLOAD))) for b in (0, 1, 255))
    assert worst - 2 <= MAX_ENCODED


def test_bytes_on_the_line_are_as_specified() -> None:
    body = b"\x01\x07\x01\x00"
    crc = zlib.crc32(body).to_bytes(4, "little")
    assert encode(Frame(1, 7, b"\x01\0")) == b"\0\x04\x01\x07\x01\x05" + crc + b"\0"
