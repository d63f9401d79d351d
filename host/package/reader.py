"""Opens a package, trusting nothing in it that is not checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.errors import InputError
from host.files import is_file, opened, read_file
from host.package.config import PackageConfig, check_config, check_scales, parse_config
from host.package.descriptor import parse_descriptor
from host.package.facts import FileEntry, ModelFacts, Scale, TensorEntry
from host.package.layout import (
    CHUNK_BYTES,
    CONFIG,
    DESCRIPTOR,
    MANIFEST,
    SCALES,
    DType,
)
from host.package.manifest import (
    MAX_BYTES,
    Checksums,
    Manifest,
    ManifestFile,
    parse_manifest,
)

__all__ = ["FileEntry", "ModelFacts", "Package", "Scale", "TensorEntry"]

_REMEDY = "Copy it again from where it is whole, or make the package again"
_MAX_SMALL_BYTES = 64 << 20
_BLOCK = 256 * CHUNK_BYTES


@dataclass(frozen=True, eq=False)
class Package:
    """A package whose files agree with each other.

    Attributes:
        path: Its folder.
        model: Everything but the weights, from the descriptor.
        config: The same as people read it, and what the model was made from.
        manifest: Sizes and checksums of all files.
    """

    path: Path
    model: ModelFacts
    config: PackageConfig
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Package:
        """Opens a package's folder.

        Args:
            path: The folder.
            verify: Also read every file and compare its checksums. Without it, only the manifest,
                the descriptor and the JSON files are read, and the sizes of all compared.

        Raises:
            InputError: A file is missing, has another size or content than the manifest states, or
                the manifest, the descriptor and the JSON files disagree.
        """
        folder = Path(path)
        if not is_file(folder / MANIFEST):
            what = (
                "is not a package: it has no manifest.json" if folder.is_dir() else "is no folder"
            )
            raise InputError(f"{folder} {what}", "Name the folder that `host quantize` made")
        manifest = parse_manifest(read_file(folder / MANIFEST, MAX_BYTES, _REMEDY))
        small = {name: manifest.file(name) for name in (DESCRIPTOR, CONFIG, SCALES)}
        for file in manifest.files:
            _check_size(folder, file)
            if verify or file.name in small:
                _check_content(folder, file)
        data = {name: read_file(folder / name, _MAX_SMALL_BYTES, _REMEDY) for name in small}
        model = parse_descriptor(data[DESCRIPTOR])
        _check_manifest(manifest, model)
        config = parse_config(data[CONFIG])
        check_config(config, model)
        check_scales(data[SCALES], model)
        return cls(folder, model, config, manifest)

    def tensor(self, index: int) -> NDArray[np.int8] | NDArray[np.int16]:
        """Reads a tensor. It is not mapped: a file cut short meanwhile would end the program.

        Args:
            index: Place in ``model.tensors``.

        Returns:
            int8 (rows, cols), or int16 (cols) of a norm; read-only.

        Raises:
            InputError: The file cannot be read any more, or is shorter than it was.
        """
        entry = self.model.tensors[index]
        is_norm = entry.dtype is DType.INT16
        shape = (entry.cols,) if is_norm else (entry.rows, entry.cols)
        path = self.path / self.model.files[entry.file].name
        count = entry.rows * entry.cols
        with opened(path) as file:
            values: NDArray[Any] = np.fromfile(
                file, dtype=entry.dtype.numpy, count=count, offset=entry.offset
            )
        if values.size != count:
            raise InputError(f"{path} is shorter than it was when opened", _REMEDY)
        values.flags.writeable = False
        return values.reshape(shape)

    def read_file(self, name: str) -> bytes:
        """Returns the content of a file that the manifest lists, or of the manifest.

        Raises:
            InputError: It is not listed, cannot be read, or has changed its size.
        """
        if name == MANIFEST:
            return read_file(self.path / MANIFEST, MAX_BYTES, _REMEDY)
        size = self.manifest.file(name).size
        data = read_file(self.path / name, size, _REMEDY)
        if len(data) != size:
            raise _wrong_size(self.path / name, len(data), size)
        return data


def _check_manifest(manifest: Manifest, model: ModelFacts) -> None:
    def disagree(what: str) -> InputError:
        return InputError(f"{MANIFEST} and the descriptor disagree about {what}", _REMEDY)

    if manifest.name != model.name:
        raise disagree("the model's name")
    if manifest.fingerprint != model.fingerprint:
        raise disagree("the fingerprint")
    listed = {DESCRIPTOR, CONFIG, SCALES, *(entry.name for entry in model.files)}
    if unknown := {file.name for file in manifest.files} - listed:
        raise disagree(min(unknown))
    crcs = model.crcs.tolist()
    for i, entry in enumerate(model.files):
        file = manifest.file(entry.name)
        last = model.files[i + 1].first_crc if i + 1 < len(model.files) else len(crcs)
        chunks = crcs[entry.first_crc : last]
        if (file.size, file.crc32, [*file.chunks]) != (entry.size, entry.crc32, chunks):
            raise disagree(entry.name)


def _check_size(folder: Path, file: ManifestFile) -> None:
    path = folder / file.name
    if not is_file(path):
        raise InputError(f"{path} is missing from the package", _REMEDY)
    with opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    if size != file.size:
        raise _wrong_size(path, size, file.size)


def _check_content(folder: Path, file: ManifestFile) -> None:
    path = folder / file.name
    checksums = Checksums()
    with opened(path) as stream:
        while block := stream.read(_BLOCK):
            checksums.update(block)
    found = checksums.entry(file.name)
    if found.size != file.size:
        raise _wrong_size(path, found.size, file.size)
    for chunk, (is_crc, crc) in enumerate(zip(found.chunks, file.chunks, strict=True)):
        if is_crc != crc:
            first = chunk * CHUNK_BYTES
            last = min(first + CHUNK_BYTES, file.size) - 1
            raise InputError(
                f"{path} is damaged in chunk {chunk} (bytes {first} to {last})", _REMEDY
            )
    if found != file:
        raise InputError(
            f"{path} is damaged, or {MANIFEST} is: the checksum of the whole file differs", _REMEDY
        )


def _wrong_size(path: Path, size: int, wanted: int) -> InputError:
    return InputError(f"{path} is {size} bytes long, and {MANIFEST} says {wanted}", _REMEDY)
