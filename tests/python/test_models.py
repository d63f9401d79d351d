"""What a MODEL or PACKAGE on the command line is taken for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from host import models
from host.errors import HostError, InputError
from host.models import (
    bundled_models,
    default_output,
    name_of,
    remember_package,
    resolve_model,
    resolve_package,
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def make_package(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").touch()
    (path / "model_config.json").touch()
    return path


def test_no_model_is_the_bundled_one_and_its_name_finds_it_too() -> None:
    (name, folder), *_ = bundled_models().items()
    assert (folder / "config.json").is_file()
    for written in (None, name, f"weights/{name}", f"weights/{name}/"):
        assert resolve_model(written) == folder


def test_nothing_bundled_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "bundled_models", dict)
    with pytest.raises(InputError, match="No model came with"):
        resolve_model(None)


def test_paths_come_before_names(tmp_path: Path) -> None:
    name = next(iter(bundled_models()))
    (tmp_path / name).mkdir()
    assert resolve_model(name) == Path(name)
    (tmp_path / "m.bin").touch()
    assert resolve_model("m.bin") == Path("m.bin")


@pytest.mark.parametrize("written", ["none", "none.bin", "/none/x.bin", "a/b/c", "owner/x.bin"])
def test_what_is_not_there_is_said_with_what_is(written: str) -> None:
    with pytest.raises(InputError, match="There is no model") as caught:
        resolve_model(written)
    assert next(iter(bundled_models())) in str(caught.value)


def test_a_hub_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from host.checkpoint import huggingface

    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return tmp_path

    monkeypatch.setattr(huggingface, "fetch_from_hub", fetch)
    assert resolve_model("owner/Model-1.5") == tmp_path
    assert asked == ["owner/Model-1.5"]


def test_names_and_places_of_packages(tmp_path: Path) -> None:
    assert name_of(Path("a/stories.bin")) == "stories.bin"  # not there: a folder's name
    (tmp_path / "stories.bin").touch()
    assert name_of(tmp_path / "stories.bin") == "stories"
    hub = tmp_path / "models--owner--Model" / "snapshots" / "0abc"
    hub.mkdir(parents=True)
    assert name_of(hub) == "Model"
    assert default_output(hub) == Path("Model-int8")
    (tmp_path / "weights").mkdir()
    assert default_output(hub) == Path("Model-int8")
    (tmp_path / "platformio.ini").touch()
    assert default_output(hub) == Path("weights/Model-int8")


def test_the_package_made_last_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no package yet"):
        resolve_package(None)
    first, second = make_package(tmp_path / "a"), make_package(tmp_path / "b")
    remember_package(first)
    remember_package(second)
    assert resolve_package(None) == second
    assert resolve_package("a") == Path("a")
    (second / "manifest.json").unlink()
    with pytest.raises(InputError, match="not there any more"):
        resolve_package(None)


@pytest.mark.parametrize("name", ["p ", "a\nb\n", os.fsdecode(b"\xff"), "ü"])
def test_any_name_of_a_package_is_remembered(tmp_path: Path, name: str) -> None:
    remember_package(make_package(tmp_path / name))
    assert resolve_package(None) == tmp_path / name


def test_models_and_packages_are_not_taken_for_each_other(tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "m.bin").touch()
    with pytest.raises(InputError, match="is a package"):
        resolve_model("package")
    with pytest.raises(InputError, match=r"is a model, not a package.*host quantize model"):
        resolve_package("model")
    with pytest.raises(InputError, match=r"is a file, not a package.*host quantize m\.bin"):
        resolve_package("m.bin")
    with pytest.raises(InputError, match="There is no package none"):
        resolve_package("none")


def test_a_state_folder_that_cannot_be_written_is_a_sentence(state: Path, tmp_path: Path) -> None:
    state.touch()
    with pytest.raises(HostError, match="state"):
        remember_package(tmp_path)


def test_a_package_that_cannot_be_remembered_leaves_nothing_behind(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="disk is full"):
        remember_package(tmp_path)
    assert list(state.iterdir()) == []
