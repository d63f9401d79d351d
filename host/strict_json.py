"""JSON from outside, read without trust.

Python's reader takes duplicate keys, NaN, infinities, lone surrogates and whatever depth its stack
holds; here each is refused, as is a file beyond a stated size, and every field is fetched with its
type and range.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from host.errors import InputError
from host.files import read_file

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
_MAX_SHOWN = 40
_MAX_DIGITS = 400


class JsonObject:
    """A JSON object whose fields are fetched with their type checked.

    Args:
        fields: The object as `json` read it.
        name: What to call it in an error, such as the file's name.
        next_step: What the user can do about a wrong field.
    """

    def __init__(self, fields: dict[str, object], name: str, next_step: str) -> None:
        self._fields = fields
        self.name = name
        self.next_step = next_step

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def wrong(self, reason: str) -> InputError:
        """Returns the error that says what is wrong with this object."""
        return InputError(f"{self.name} cannot be used: {reason}", self.next_step)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Returns a whole number from low to high; null counts as absent.

        Raises:
            InputError: It is absent and has no default, is no whole number, or is out of range.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(f"{key} is {shown(value)}, and a whole number is wanted")
        if not low <= value <= high:
            raise self.wrong(f"{key} is {shown(value)}, and {low} to {high} is allowed")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Returns a number from low to high.

        Raises:
            InputError: It is absent and has no default, is no number, or is out of range.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"{key} is {shown(value)}, and a number is wanted")
        if not low <= value <= high:
            raise self.wrong(f"{key} is {shown(value)}, and {low:g} to {high:g} is allowed")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false.

        Raises:
            InputError: It is absent and has no default, or is neither.
        """
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{key} is {shown(value)}, and true or false is wanted")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Returns a string.

        Raises:
            InputError: It is absent and has no default, or is no string.
        """
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(f"{key} is {shown(value)}, and a text is wanted")
        return value

    def items(self, key: str) -> list[object]:
        """Returns a list.

        Raises:
            InputError: It is absent or no list.
        """
        value = self._get(key, None)
        if not isinstance(value, list):
            raise self.wrong(f"{key} is {shown(value)}, and a list is wanted")
        return value

    def child(self, key: str) -> JsonObject:
        """Returns an object.

        Raises:
            InputError: It is absent or no object.
        """
        return self.as_child(self._get(key, None), key)

    def children(self, key: str) -> list[JsonObject]:
        """Returns a list of objects.

        Raises:
            InputError: It is absent or not such a list.
        """
        return [self.as_child(item, f"{key}[{i}]") for i, item in enumerate(self.items(key))]

    def as_child(self, value: object, key: str) -> JsonObject:
        """Returns a value that was found at a key, as an object.

        Raises:
            InputError: It is none.
        """
        if not isinstance(value, dict):
            raise self.wrong(f"{key} is {shown(value)}, and an object is wanted")
        return JsonObject(value, f"{self.name}, {plain(key)},", self.next_step)

    def only(self, keys: Iterable[str]) -> None:
        """Refuses fields that are not among the keys.

        Raises:
            InputError: There is one.
        """
        if unknown := sorted(set(self._fields) - set(keys)):
            raise self.wrong(f"it has the unknown field {shown(unknown[0])}")

    def raw(self, key: str) -> object:
        """Returns what is there, None where nothing is."""
        return self._fields.get(key)

    def _get(self, key: str, default: object) -> object:
        value = self._fields.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.wrong(f"{key} is missing")
        return default


def shown(value: object) -> str:
    """Returns a value as JSON, shortened for a message."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "beyond 64 bits"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def plain(text: str) -> str:
    """Returns a text from a file as one short line of ASCII, for a message."""
    return json.dumps(text)[1:-1][: 2 * _MAX_SHOWN]


def parse_object(data: bytes, name: str, next_step: str) -> JsonObject:
    """Reads a JSON object.

    Args:
        data: UTF-8.
        name: What to call it in an error.
        next_step: What the user can do if it is wrong.

    Raises:
        InputError: It is no valid JSON object, or has what `json` would let pass: a key twice, NaN,
            a number beyond float64, half of a surrogate pair.
    """
    return JsonObject(parse_fields(data, name, next_step), name, next_step)


def parse_fields(data: bytes, name: str, next_step: str) -> dict[str, object]:
    """As `parse_object`, for a reader that checks the fields itself."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise InputError(f"{name} is not valid UTF-8", next_step) from None
    except RecursionError:
        raise InputError(f"{name} is not usable JSON: it is nested too deep", next_step) from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} in line {error.lineno}"
        raise InputError(f"{name} is not valid JSON: {where}", next_step) from None
    except ValueError as error:
        raise InputError(f"{name} is not usable JSON: {error}", next_step) from None
    if not isinstance(value, dict):
        raise InputError(f"{name} is not a JSON object", next_step)
    return value


def read_object(path: Path, next_step: str, max_bytes: int = MAX_BYTES) -> JsonObject:
    """Reads a file that holds a JSON object.

    Args:
        path: The file.
        next_step: What the user can do if it is wrong.
        max_bytes: A longer file is refused unread.

    Raises:
        InputError: It cannot be read, is too long, or `parse_object` refuses it.
    """
    return parse_object(read_file(path, max_bytes, next_step), path.name, next_step)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _check_depth(value: object) -> None:
    """Whatever a caller's own depth, what is read can be walked through and shown."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    if level:
        raise RecursionError


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_SHOWN]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MAX_SHOWN]} is too large a number")
    return value
