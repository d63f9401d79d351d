"""What the tests share: models, compilers, built engines, and the rule that CI skips nothing.

A test that needs something the machine lacks is skipped with the reason. With ``TLLM_STRICT=1``, as
in CI, such a skip is a failure, except where the test is marked ``board``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
FIRMWARE = REPOSITORY / "firmware"
INCLUDES = ("lib/tinyllm", "lib/device")
PORTABLE = ("lib/tinyllm/*.c", "lib/device/*.c")
WARNINGS = (
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-pedantic",
    "-Wconversion",
    "-Wmissing-prototypes",
    "-Werror",
)


# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# No test depends on the machine's speed, nor on fixtures being made anew for each example.
settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)
settings.load_profile("unhurried")


# --- CI skips nothing -----------------------------------------------------------------------------


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"TLLM_STRICT=1 allows no skip: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("TLLM_STRICT") == "1" and item.get_closest_marker("board") is None:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if os.environ.get("TLLM_STRICT") == "1":
        _forbid_skip(report)
    return report


# --- Counts that tests record (record_property) are said at the end -------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counted = [r for r in terminalreporter.getreports("passed") if r.user_properties]
    if counted:
        terminalreporter.section("counts")
    for report in counted:
        figures = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
        terminalreporter.line(f"{report.nodeid.rsplit('/', 1)[-1]}: {figures}")


# --- Models and texts beside the checkout ---------------------------------------------------------


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the models and texts that only tests use."""
    path = REPOSITORY.parent / "shared"
    if not (path / "models").is_dir():
        pytest.skip("the test models are not in ../shared, beside the checkout")
    return path


@pytest.fixture(scope="session")
def surrogate_dir(shared_dir: Path) -> Path:
    """A Hugging Face checkpoint of exactly Tiny-LLM's shape: 1 layer, vocabulary 32,000."""
    return shared_dir / "models" / "tiny-llm-surrogate"


@pytest.fixture(scope="session")
def stories260k_bin(shared_dir: Path) -> Path:
    """A llama2.c version-0 checkpoint: 5 layers, grouped heads, vocabulary 512, tied head."""
    return shared_dir / "models" / "stories260K" / "stories260K.bin"


@pytest.fixture(scope="session")
def stories260k_tokenizer(stories260k_bin: Path) -> Path:
    """The tokenizer that belongs to `stories260k_bin`."""
    return stories260k_bin.with_name("tok512.bin")


@pytest.fixture(scope="session")
def valid_text(shared_dir: Path) -> str:
    """91 KB of short stories that no model here was trained on."""
    return (shared_dir / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")


# --- Packages -------------------------------------------------------------------------------------


class Quantized(Protocol):
    """Quantizes `stories260K`, `tiny-llm-surrogate` or `bundled`, and returns the package."""

    def __call__(self, model: str) -> Path: ...


@pytest.fixture(scope="session")
def quantized(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Quantized:
    """Packages, kept by the hash of the code that makes them; tests copy what they change."""
    from host.checkpoint import load_checkpoint
    from host.models import resolve_model
    from host.quantize import quantize_checkpoint

    assert pytestconfig.cache is not None
    store = pytestconfig.cache.mkdir("tllm-packages")
    parts = ("checkpoint", "quantize", "package", "tokenizer")
    code = sorted(path for part in parts for path in (REPOSITORY / "host" / part).glob("*.py"))

    def quantize(model: str) -> Path:
        if model == "bundled":
            source = resolve_model(None)
        elif model == "stories260K":
            source = request.getfixturevalue("stories260k_bin")
        else:
            source = request.getfixturevalue("surrogate_dir")
        weights = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
        digest = hashlib.sha256()
        for path in code:
            digest.update(path.read_bytes())
        for path in weights:
            digest.update(f"{path}\0{path.stat().st_mtime_ns}\0".encode())
        folder = store / f"{model}-{digest.hexdigest()[:16]}"
        with _locked(store / f"{model}.lock"):
            if not folder.exists():
                quantize_checkpoint(load_checkpoint(source), folder)
        return folder

    return quantize


def insert_card(state: Path, card: Path) -> None:
    """Puts a folder of files into the simulated board whose folder is `state`, without a copy.

    The board's card is a folder of its own: a command keeps others from the card it uses, and test
    processes running side by side use the same package.
    """
    own = state / "card"
    own.mkdir(parents=True)
    for path in card.iterdir():
        (own / path.name).symlink_to(path)


# --- Programs a test may need ---------------------------------------------------------------------


def _program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"{names[0]} is not installed")


@pytest.fixture(scope="session")
def gcc() -> str:
    """GNU C compiler for this machine."""
    if sys.platform == "darwin":
        pytest.skip("gcc is another name for clang here")
    return _program("gcc")


@pytest.fixture(scope="session")
def clang() -> str:
    """LLVM C compiler for this machine, with the sanitizers' run-time library."""
    return _program("clang", "clang-14", "clang-16", "clang-18")


@pytest.fixture(scope="session", params=["gcc", "clang"])
def cc(request: pytest.FixtureRequest) -> str:
    """Each C compiler in turn."""
    compiler: str = request.getfixturevalue(request.param)
    return compiler


@pytest.fixture(scope="session")
def xtensa_gcc() -> str:
    """Compiler for the ESP8266's core, the ESP32's elder sister."""
    return _program("xtensa-lx106-elf-gcc")


@pytest.fixture(scope="session")
def qemu_xtensa() -> str:
    """Emulator of bare Xtensa cores."""
    return _program("qemu-system-xtensa")


# --- The engine, built the way a test wants it ----------------------------------------------------


class Build(Protocol):
    """Builds with a compiler and flags, once a machine, and returns the product's path."""

    def __call__(self, cc: str, flags: Sequence[str] = ("-O2",)) -> Path: ...


class Compile(Protocol):
    """Links sources into one product, once a machine, and returns its path."""

    def __call__(
        self, name: str, cc: str, flags: Sequence[str], sources: Sequence[Path]
    ) -> Path: ...


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(command: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256("\0".join(command).encode())
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    digest.update(version)
    for path in files:
        digest.update(f"{path}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@pytest.fixture(scope="session")
def compile_c(pytestconfig: pytest.Config) -> Compile:
    """Compiles and links C files with warnings as errors.

    The product is kept by the hash of the compiler, the flags, the sources and every header of the
    portable code, so that test processes running side by side, and the next run, share it.
    """
    assert pytestconfig.cache is not None
    store = pytestconfig.cache.mkdir("tllm-build")

    def build(name: str, cc: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
        folders = dict.fromkeys([*(FIRMWARE / i for i in INCLUDES), *(s.parent for s in sources)])
        headers = sorted(h for folder in folders for h in folder.glob("*.h"))
        includes = [f"-I{folder}" for folder in folders]
        command = [cc, *WARNINGS, *flags, *includes, *map(str, sources)]
        folder = store / _digest(command, [*sources, *headers])
        product = folder / name
        folder.mkdir(exist_ok=True)
        with _locked(folder / "lock"):
            if not product.exists():
                partial = folder / f"{name}.partial"
                result = subprocess.run(
                    [*command, "-o", str(partial)], capture_output=True, text=True, check=False
                )
                if result.returncode != 0:
                    pytest.fail(f"{cc} {' '.join(flags)} failed:\n{result.stderr}", pytrace=False)
                partial.rename(product)
        return product

    return build


def portable_sources() -> list[Path]:
    """Every C file of the engine and of the board's program."""
    return sorted(path for pattern in PORTABLE for path in FIRMWARE.glob(pattern))


@pytest.fixture(scope="session")
def build_sim(compile_c: Compile) -> Build:
    """Builds the simulated board; called with a compiler and flags."""

    def build(cc: str, flags: Sequence[str] = ("-O2",)) -> Path:
        port = sorted((FIRMWARE / "ports" / "posix").glob("*.c"))
        return compile_c("tllm-sim", cc, [*flags, "-pthread"], [*portable_sources(), *port])

    return build


@pytest.fixture(scope="session")
def build_library(compile_c: Compile) -> Build:
    """Builds the engine and the board's program as a shared library, for cffi."""

    def build(cc: str, flags: Sequence[str] = ("-O2",)) -> Path:
        suffix = "dylib" if sys.platform == "darwin" else "so"
        shared = [*flags, "-fPIC", "-shared"]
        return compile_c(f"libtllm.{suffix}", cc, shared, portable_sources())

    return build


@pytest.fixture(scope="session")
def run_host() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command-line tool in a process of its own and returns what it said."""

    def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [sys.executable, "-m", "host", *args],
            **{"capture_output": True, "text": True, "check": False, "timeout": 300, **options},
        )

    return run
