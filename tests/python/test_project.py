"""What holds the project together: versions, commands, settings, and the rules of the tests."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

import host
from host import resources
from host.errors import (
    CheckFailed,
    HostError,
    InputError,
    LinkError,
    OutputError,
    explain_os_error,
)
from host.models import bundled_models

REPOSITORY = Path(__file__).resolve().parents[2]
README_COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/host demo",
    "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest",
)


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def test_one_version() -> None:
    header = re.search(r'#define TLLM_VERSION "([^"]+)"', read("firmware/lib/tinyllm/tinyllm.h"))
    assert header is not None
    assert header[1] == host.__version__
    assert metadata.version(resources.DISTRIBUTION) == host.__version__


@pytest.mark.parametrize("command", README_COMMANDS)
def test_readme_has_the_command(command: str) -> None:
    assert command in read("README.md").splitlines() or f"    {command}" in read("README.md")


def test_ci_runs_the_readme_s_second_command() -> None:
    script = read(".ci/run").splitlines()
    for part in README_COMMANDS[1].split(" && "):
        assert any(line.removeprefix("exec ").startswith(part) for line in script), part


def test_engine_is_installed() -> None:
    assert os.access(resources.simulator(), os.X_OK)
    assert resources.engine_library().stat().st_size > 0


def test_missing_engine_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TLLM_NATIVE_DIR", str(tmp_path))
    with pytest.raises(HostError, match=r"tllm-sim is not built\. Run `pip install \.`"):
        resources.simulator()


def test_bundled_models_are_those_kept_in_git() -> None:
    kept = set(re.findall(r"^!/weights/([^/]+)/$", read(".gitignore"), re.M))
    listed = re.search(r"set\(bundled_models (.+)\)", read("firmware/ports/posix/CMakeLists.txt"))
    assert listed is not None
    assert set(listed[1].split()) == kept
    assert {path.name for path in bundled_models().values()} >= kept


def test_import_loads_nothing_heavy() -> None:
    code = "import host.cli, sys; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "serial", "esptool"} & set(run.stdout.split())


# --- Errors ---------------------------------------------------------------------------------------


def test_error_is_a_sentence_and_a_next_step() -> None:
    error = InputError("model.bin is cut short", "Download it again")
    assert str(error) == "model.bin is cut short. Download it again."
    assert str(LinkError("Is the board there?")) == "Is the board there?"


def test_exit_codes() -> None:
    assert int(InputError("x").exit_code) == 2
    assert int(CheckFailed("x").exit_code) == 1


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOENT, InputError, "card.bin does not exist. Check the name."),
        (errno.ENOSPC, OutputError, "card.bin does not fit: the disk is full. "),
        (errno.EACCES, InputError, "card.bin is not permitted. "),
        (errno.EBUSY, InputError, "card.bin is in use by another program. "),
        (errno.EMLINK, InputError, "card.bin cannot be used: Too many links. "),
    ],
)
def test_os_error_is_explained(code: int, kind: type[HostError], words: str) -> None:
    explained = explain_os_error(OSError(code, os.strerror(code), "card.bin"))
    assert type(explained) is kind
    assert str(explained).startswith(words)


def test_os_error_is_called_what_the_user_calls_it() -> None:
    explained = explain_os_error(FileNotFoundError(errno.ENOENT, "", "/dev/ttyUSB9"), "The port")
    assert str(explained) == "The port does not exist. Check the name."


# --- PlatformIO -----------------------------------------------------------------------------------


def test_platformio_settings_are_known() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("pio"), "project", "config", "--json-output"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    sections = {name: dict(options) for name, options in json.loads(run.stdout)}
    environments = {name.removeprefix("env:") for name in sections if name.startswith("env:")}
    assert environments == {"esp32cam", "esp32cam-rev3", "esp32s3", "host", "lx106"}
    assert sections["env:esp32cam"]["platform"] == "espressif32 @ 6.13.0"
    assert "warning" not in (run.stdout + run.stderr).lower()


def test_partitions_fit_the_flash() -> None:
    end = 0x9000
    for line in read("firmware/partitions.csv").splitlines():
        if line.startswith("#"):
            continue
        name, kind, _, offset, size = (field.strip() for field in line.split(","))
        assert int(offset, 0) >= end, f"{name} overlaps what is before it"
        assert int(offset, 0) % (0x10000 if kind == "app" else 0x1000) == 0
        end = int(offset, 0) + int(size, 0)
    assert end == 4 * 1024 * 1024


# --- The rule that CI skips nothing ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("strict", "expected"),
    [
        ("0", {"passed": 1, "skipped": 3}),
        ("1", {"passed": 1, "skipped": 1, "failed": 1, "error": 1}),
    ],
)
def test_strict_runs_allow_no_skip(tmp_path: Path, strict: str, expected: dict[str, int]) -> None:
    (tmp_path / "conftest.py").write_text(read("tests/conftest.py"), encoding="utf-8")
    (tmp_path / "test_inner.py").write_text(
        textwrap.dedent("""\
            import pytest

            @pytest.fixture
            def missing():
                pytest.skip("not here")

            def test_in_fixture(missing): pass
            def test_in_body(): pytest.skip("not here")
            def test_passes(): pass

            @pytest.mark.board
            def test_board(missing): pass
            """),
        encoding="utf-8",
    )
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", str(tmp_path)),
            *("-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(tmp_path)),
        ],
        cwd=tmp_path,
        env={**os.environ, "TLLM_STRICT": strict},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout)
    counts = {word: int(n) for n, word in found}
    assert counts == expected, run.stdout
