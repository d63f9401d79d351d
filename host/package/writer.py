"""Writes a package: every file synced, the folder in place only once all of it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.atomic import writing
from host.errors import InputError
from host.package.config import PackageConfig, TensorScale, pack_config, pack_scales
from host.package.constants import attention_scale, epsilon, rope_frequencies
from host.package.descriptor import pack_descriptor
from host.package.facts import (
    FileEntry,
    ModelFacts,
    Scale,
    TensorEntry,
    check_dimensions,
)
from host.package.layout import (
    CONFIG,
    DESCRIPTOR,
    MANIFEST,
    SCALES,
    TOKENIZER,
    TensorPlace,
    tensor_places,
)
from host.package.manifest import (
    Checksums,
    ManifestFile,
    fingerprint_of,
    pack_manifest,
    parse_manifest,
)

_BLOCK = 1 << 20


class PackageWriter:
    """Writes a package's files into a folder, tensor by tensor.

    Args:
        folder: An empty folder, which `host.atomic.new_folder` makes.
        config: The model.

    Raises:
        InputError: The engine does not support such a model.
    """

    def __init__(self, folder: Path, config: PackageConfig) -> None:
        check_dimensions(config.dimensions)
        self.places = tensor_places(config.dimensions, config.tie_word_embeddings)
        self._folder = folder
        self._config = config
        self._files: dict[str, ManifestFile] = {}
        self._tensors: dict[str, TensorScale] = {}

    def add_tensor(
        self,
        place: TensorPlace,
        values: NDArray[np.int8] | NDArray[np.int16],
        scale: Scale,
        snr_db: float | None,
        clipped: float,
    ) -> None:
        """Writes a tensor's file; of a tied head, which is the embedding's, it keeps the facts.

        Args:
            place: One of `places`, each once.
            values: (rows, cols), or (cols) of a norm, of the place's type.
            scale: What an element of 1 stands for.
            snr_db: Signal to quantization noise, dB; None where there is no noise, or no signal.
            clipped: Share of the elements that were clamped.

        Raises:
            HostError: The file cannot be written.
        """
        if values.size != place.rows * place.cols or place.key in self._tensors:
            raise ValueError(f"{place.key} is not to be written with {values.shape}")
        self._tensors[place.key] = TensorScale(place, scale, snr_db, clipped)
        if place.file not in self._files:
            stored = np.ascontiguousarray(values, dtype=place.dtype.numpy)
            view = stored.reshape(-1).view(np.uint8).data
            self._write(place.file, (view[at : at + _BLOCK] for at in range(0, len(view), _BLOCK)))

    def finish(self, scheme: str, tokenizer: bytes) -> ModelFacts:
        """Writes what is left: tokenizer, configuration, scales, descriptor, manifest.

        Args:
            scheme: How the matrices were quantized.
            tokenizer: The content of `tokenizer.bin`.

        Returns:
            The model's facts, checked.

        Raises:
            HostError: A file cannot be written.
        """
        scales = [self._tensors[place.key] for place in self.places]
        self._write(TOKENIZER, [tokenizer])
        in_descriptor = [*self._files.values()]
        self._write(CONFIG, [pack_config(self._config)])
        self._write(SCALES, [pack_scales(scheme, scales)])
        model = _facts(self._config, scales, in_descriptor, fingerprint_of(self._files.values()))
        self._write(DESCRIPTOR, [pack_descriptor(model)])
        manifest = pack_manifest(self._config.name, self._files.values())
        self._write(MANIFEST, [manifest])
        return model

    def _write(self, name: str, blocks: Iterable[bytes | memoryview]) -> None:
        checksums = Checksums()
        path = self._folder / name
        with writing(Path(name)), path.open("xb") as file:
            for block in blocks:
                file.write(block)
                checksums.update(block)
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = checksums.entry(name)


def is_only_package(folder: Path) -> bool:
    """Returns whether a folder holds a package and nothing else, so that another may replace it."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
        present = {path.name for path in folder.iterdir() if not path.is_dir()}
        folders = any(path.is_dir() for path in folder.iterdir())
    except (OSError, InputError):
        return False
    return not folders and present <= {MANIFEST, *(file.name for file in manifest.files)}


def _facts(
    config: PackageConfig,
    scales: Iterable[TensorScale],
    files: Iterable[ManifestFile],
    fingerprint: bytes,
) -> ModelFacts:
    dims = config.dimensions
    entries: list[FileEntry] = []
    crcs: list[int] = []
    for file in files:
        entries.append(FileEntry(file.name, file.size, len(crcs), file.crc32))
        crcs += file.chunks
    index = {entry.name: i for i, entry in enumerate(entries)}
    tensors = [
        TensorEntry(index[s.place.file], s.place.dtype, s.place.rows, s.place.cols, 0, s.scale)
        for s in scales
    ]
    eps_m, eps_e = epsilon(config.rms_norm_eps)
    return ModelFacts(
        name=config.name,
        fingerprint=fingerprint,
        vocab=dims.vocab,
        hidden=dims.hidden,
        layers=dims.layers,
        heads=dims.heads,
        kv_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        ffn=dims.ffn,
        context=dims.context,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        add_bos=config.add_bos_token,
        eps_m=eps_m,
        eps_e=eps_e,
        attn_scale=attention_scale(dims.head_dim),
        files=tuple(entries),
        tensors=tuple(tensors),
        rope_freq=rope_frequencies(config.rope_theta, dims.head_dim),
        crcs=np.array(crcs, dtype=np.uint32),
    )
