"""The engine as a library, for the tests of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import engine_library
import pytest
from tiny_model import TinyModel


@pytest.fixture(scope="session")
def library(gcc: str, compile_c: Any) -> tuple[Any, Any]:
    """(ffi, lib) of the engine built as for release."""
    flags = ["-O3", "-fPIC", "-shared"]
    path = compile_c("libtllm-test.so", gcc, flags, engine_library.sources())
    return engine_library.open_library(path)


@pytest.fixture(scope="session")
def make_engine(library: tuple[Any, Any]) -> Callable[..., engine_library.Engine]:
    """Makes an engine of a model, a port and a configuration."""
    ffi, lib = library

    def make(
        model: TinyModel, port: engine_library.Port | None = None, **config: Any
    ) -> engine_library.Engine:
        return engine_library.Engine(ffi, lib, model, port or engine_library.Port(model), **config)

    return make
