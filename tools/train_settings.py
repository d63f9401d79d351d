"""The settings of a training run: what they are, their ranges, and the file that holds them."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from host.errors import InputError
from host.package.facts import MAX_COLUMNS, MAX_CONTEXT, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB
from host.strict_json import JsonObject
from tools.train_command import read_text
from tools.train_network import Shape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

_MANY = 10**9
_RANGES: dict[str, tuple[float, float]] = {
    # [data]
    "held_out_every": (2, _MANY),
    # [model]: what the engine takes; 259 tokens are control and bytes
    "vocabulary": (260, MAX_VOCAB),
    "hidden": (2, MAX_HIDDEN),
    "layers": (1, MAX_LAYERS),
    "heads": (1, MAX_COLUMNS // 2),
    "kv_heads": (1, MAX_COLUMNS // 2),
    "feed_forward": (1, MAX_COLUMNS),
    "context": (2, MAX_CONTEXT),
    "head_dim": (0, MAX_COLUMNS),
    "rope_theta": (1, 1e15),
    "norm_epsilon": (1e-30, 1),
    # [teacher]
    "rows": (0, _MANY),
    "temperature": (0.01, 100),
    "real_rows": (0, 1),
    "real_weight": (0, 1),
    # [training]
    "steps": (1, _MANY),
    "batch_rows": (1, 1 << 16),
    "row_length": (2, MAX_CONTEXT),
    "matrix_rate": (1e-9, 10),
    "other_rate": (1e-9, 10),
    "weight_decay": (0, 1),
    "warmup": (0, 0.99),
    "rounded_from": (0, 1),
    "clip_deviations": (0, 1000),
    "minutes": (0, 1e6),
    "evaluate_every": (1, _MANY),
    "seed": (0, (1 << 31) - 1),
    "threads": (0, 1024),
}


@dataclass(frozen=True)
class Data:
    """Where the text comes from. Paths are relative to the configuration file."""

    texts: tuple[Path, ...]
    separator: str = r"<\|endoftext\|>"
    exclude: tuple[Path, ...] = ()
    held_out_every: int = 20
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Teacher:
    """A checkpoint to distil from, of the model's tokenizer, and how many rows it writes."""

    checkpoint: Path
    rows: int = 0
    temperature: float = 1.0
    real_rows: float = 0.25
    real_weight: float = 0.5


@dataclass(frozen=True)
class Training:
    """The schedule. `minutes` (0: no limit) ends a run early and shortens its schedule so."""

    steps: int
    batch_rows: int = 16
    row_length: int = 512
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    weight_decay: float = 0.1
    warmup: float = 0.02
    rounded_from: float = 0.8
    clip_deviations: float = 4.0
    minutes: float = 0.0
    evaluate_every: int = 200
    seed: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Configuration:
    """A whole configuration file: `output` gets the model, `work` what a run needs meanwhile."""

    output: Path
    work: Path
    data: Data
    model: Shape
    teacher: Teacher | None
    training: Training


Section = TypeVar("Section", Data, Shape, Teacher, Training)


def read_configuration(path: Path) -> Configuration:
    """Reads the TOML file.

    Raises:
        InputError: It cannot be read, or a setting is missing, unknown, of the wrong type or out
            of range, which the message names.
    """
    try:
        # JSON has no dates, and no setting is one: each becomes the text it was written as.
        tables = json.loads(json.dumps(tomllib.loads(read_text(path)), default=str))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", "Correct it") from error
    whole = JsonObject(tables, str(path), "Correct it")
    _refuse_unknown(whole, [field.name for field in fields(Configuration)])
    here = path.resolve().parent
    configuration = Configuration(
        output=here / whole.text("output"),
        work=here / whole.text("work"),
        data=_section(Data, whole, "data", here),
        model=_section(Shape, whole, "model", here),
        teacher=_section(Teacher, whole, "teacher", here) if "teacher" in whole else None,
        training=_section(Training, whole, "training", here),
    )
    length, context = configuration.training.row_length, configuration.model.context
    if length > context:
        raise InputError(
            f"row_length = {length} is over the model's context of {context}",
            "Lower it or raise `context`",
        )
    try:
        separator = re.compile(configuration.data.separator)
    except (re.error, OverflowError, RecursionError) as error:
        raise whole.wrong(f"separator is no regular expression ({error})") from error
    if not separator.pattern:
        raise whole.wrong("separator is empty, and would part the text into letters")
    return configuration


def _section(kind: type[Section], whole: JsonObject, name: str, here: Path) -> Section:
    table = whole.as_child(whole.raw(name) or {}, name)
    table.name = f"[{name}] of {whole.name}"
    _refuse_unknown(table, [field.name for field in fields(kind)])
    types = get_type_hints(kind)
    return kind(
        **{
            field.name: _value(table, field, types[field.name], here)
            for field in fields(kind)
            if field.name in table or field.default is MISSING
        }
    )


def _refuse_unknown(table: JsonObject, known: list[str]) -> None:
    for name in table:
        if name not in known:
            raise InputError(
                f"{table.name} has no setting {name!r}", f"Choose from {', '.join(known)}"
            )


def _value(table: JsonObject, field: Field[Any], kind: object, here: Path) -> Any:
    name = field.name
    low, high = _RANGES.get(name, (0, 0))
    if kind is int:
        return table.integer(name, int(low), int(high))
    if kind is float:
        return table.number(name, low, high)
    if kind is bool:
        return table.flag(name)
    if kind is str:
        return table.text(name)
    if kind != tuple[Path, ...]:
        return _input(table, name, table.text(name), here)
    entries = table.items(name)
    if not entries and field.default is MISSING:
        raise table.wrong(f"{name} is empty, and a file or folder is wanted")
    return tuple(_input(table, name, entry, here) for entry in entries)


def _input(table: JsonObject, name: str, entry: object, here: Path) -> Path:
    if not isinstance(entry, str):
        raise table.wrong(f"{name} is not made of texts in quotes")
    path = here / entry
    if not path.exists():
        raise table.wrong(f"{name} names {path}, which does not exist")
    return path
