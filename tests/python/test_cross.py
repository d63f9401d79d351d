"""The C engine and the numpy reference on random models: every stage, every token, bit for bit.

Shapes, tensors, feeds, conversations and the engine's configuration are drawn by `cross.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import engine_library as el
import pytest
from cross import Library, differences

from tests.conftest import REPOSITORY, Compile

GROUPS, SEEDS = 4, 12
SANITIZED_SEEDS = 8


@pytest.fixture(scope="module")
def libraries(gcc: str, clang: str, compile_c: Compile) -> list[Library]:
    """The engine built by each compiler, with the reference's kernels and the fast ones."""
    builds = [(gcc, ["-O3"]), (gcc, ["-O0"]), (clang, ["-O2", "-DTLLM_KERNELS_REF"])]
    paths = [
        compile_c("libtllm-test.so", cc, [*flags, "-fPIC", "-shared"], el.sources())
        for cc, flags in builds
    ]
    return [el.open_library(path) for path in paths]


@pytest.mark.parametrize("group", range(GROUPS))
def test_equal_on_random_models(libraries: list[Library], group: int) -> None:
    for seed in range(group * SEEDS, (group + 1) * SEEDS):
        assert list(differences(seed, libraries)) == []


def test_equal_on_random_models_with_sanitizers(gcc: str, compile_c: Compile) -> None:
    library = compile_c("libtllm-san.so", gcc, el.SANITIZED, el.sources())
    program = Path(__file__).with_name("cross.py")
    words = [str(library), str(GROUPS * SEEDS), str(SANITIZED_SEEDS)]
    paths = [REPOSITORY, REPOSITORY / "tests" / "c"]
    result = el.run_sanitized(gcc, program, *words, paths=paths)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"{SANITIZED_SEEDS} models, 0 differences\n"


# --- The check can fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("fixed.c", "(int32_t)bits - 29;", "(int32_t)bits - 30;"),
        ("fixed.h", "tllm_asr(v, n) + (tllm_asr(v, n - 1) & 1)", "(v + (v > 0)) / (1ll << n)"),
        ("ops.c", "pos * freq[i]", "(uint32_t)((uint64_t)pos * freq[i] % UINT32_MAX)"),
        ("ops.c", "t <= at->pos; t++)\n        e =", "t < at->pos; t++)\n        e ="),
        ("stream.c", "rows->held > 0", "rows->held > 1"),
        ("session.c", "context < 4 ? 1 : context / 4", "context / 4 + 1"),
        ("sampler.c", "la == lb && a < b", "la == lb && a > b"),
    ],
    ids=str,
)
def test_a_subtle_fault_is_found(
    gcc: str, file: str, right: str, wrong: str, tmp_path: Path
) -> None:
    sources = shutil.copytree(el.TINYLLM, tmp_path / "tinyllm")
    text = (sources / file).read_text()
    assert right in text
    (sources / file).write_text(text.replace(right, wrong, 1))
    library = tmp_path / "wrong.so"
    files = [str(path) for path in [*sorted(sources.glob("*.c")), el.EXPORTS_C]]
    command = [gcc, "-O1", "-w", "-fPIC", "-shared", f"-I{sources}", *files, "-o", str(library)]
    subprocess.run(command, check=True)
    opened = [el.open_library(library)]
    assert any(line for seed in range(GROUPS * SEEDS) for line in differences(seed, opened))
