"""Renders a package's descriptor as C: the same facts, const and in flash, integers only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from host.atomic import write_file, writing
from host.package import ModelFacts, Package
from host.package.manifest import GENERATOR

HEADER = "tllm_model_data.h"
_WORDS_A_LINE, _OCTETS_A_LINE = 8, 16
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\?')


def generate_headers(package_dir: str | Path, out_dir: str | Path) -> Path:
    """Writes `tllm_model_data.h` for a package; the same package gives the same bytes.

    A header that has this content already is not touched, so that a build finds it unchanged.

    Args:
        package_dir: The package, all of whose checksums are compared.
        out_dir: The folder for the header, made where it is missing.

    Returns:
        The header.

    Raises:
        InputError: The package is damaged.
        HostError: The header cannot be written; what stood there before is untouched.
    """
    model = Package.open(package_dir).model
    header = Path(out_dir) / HEADER
    with writing(header.parent):
        header.parent.mkdir(parents=True, exist_ok=True)
    write_file(header, render_header(model).encode("ascii"))
    return header


def render_header(model: ModelFacts) -> str:
    """Returns the header's text, ASCII."""
    environment = Environment(
        loader=PackageLoader("host.headers"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - it is C, and every text in it is checked or escaped
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "c_string": _c_string,
        "hex32": _hex32,
        "words": lambda values: _lines(map(_hex32, values.tolist()), _WORDS_A_LINE),
        "octets": lambda data: _lines((f"0x{byte:02x}" for byte in data), _OCTETS_A_LINE),
    }
    tensors = list(zip(model.places, model.tensors, strict=True))
    template = environment.get_template(f"{HEADER}.j2")
    return template.render(generator=GENERATOR, model=model, tensors=tensors)


def _hex32(value: int) -> str:
    return f"0x{value:08x}u"


def _lines(texts: Iterable[str], count: int) -> Iterator[str]:
    remaining = iter(texts)
    while line := ", ".join(islice(remaining, count)):
        yield line


def _c_string(text: str) -> str:
    """A string literal; octal escapes are three digits, so that none runs into what follows."""
    escaped = (chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(escaped)}"'
