"""From a float checkpoint to a package, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from host.atomic import new_folder
from host.checkpoint import Checkpoint
from host.checkpoint.model import EMBED, FINAL_NORM, HEAD, layer_tensor
from host.package.config import PackageConfig
from host.package.facts import ModelFacts, Scale
from host.package.layout import EMBED as EMBED_PART
from host.package.layout import FINAL_NORM as FINAL_NORM_PART
from host.package.layout import HEAD as HEAD_PART
from host.package.layout import DType, TensorPlace
from host.package.writer import PackageWriter, is_only_package
from host.quantize.schemes import Int8PerTensor, Int16PowerOfTwo, Quantized, Scheme

Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, the bytes written so far and the bytes of all tensors."""

_OUTSIDE_LAYERS = {EMBED_PART: EMBED, FINAL_NORM_PART: FINAL_NORM, HEAD_PART: HEAD}


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor.

    Attributes:
        name: Such as ``q_proj``.
        file: The file that holds it; the embedding's for a tied head.
        dtype: ``int8`` or ``int16``.
        shape: (out_features, in_features), or (hidden) of a norm.
        size: Bytes.
        scale: What an element of 1 stands for.
        snr_db: Signal to quantization noise, dB; None where there is no noise, or no signal.
        clipped: Share of the elements that were clamped, 0 to 1.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    scale: Scale
    snr_db: float | None
    clipped: float


@dataclass(frozen=True, eq=False)
class QuantizeReport:
    """What `quantize_checkpoint` made.

    Attributes:
        path: The package's folder.
        model: Its facts.
        rows: Every tensor in the descriptor's order; a tied head is the last, with the embedding's
            file.
    """

    path: Path
    model: ModelFacts
    rows: tuple[TensorReport, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors' files, a tied head counted once."""
        return sum({row.file: row.size for row in self.rows}.values())


def quantize_checkpoint(
    checkpoint: Checkpoint,
    out_dir: Path,
    progress: Progress | None = None,
    scheme: Scheme | None = None,
) -> QuantizeReport:
    """Makes a package of a checkpoint.

    No more is held at a time than one tensor in float32 and its integers.

    Args:
        checkpoint: The float model.
        out_dir: The folder to make. One that holds a package, and nothing else, is replaced.
        progress: Called after each tensor.
        scheme: How matrices are quantized; `Int8PerTensor` where omitted.

    Raises:
        InputError: The model is beyond the engine, or has a weight that is not finite.
        OutputError: The folder holds something else, or the disk is full. On any error what stood
            there before is untouched and nothing is left behind.
    """
    matrices = scheme or Int8PerTensor()
    config = PackageConfig(**asdict(checkpoint.config), source=checkpoint.source)
    tokenizer = checkpoint.tokenizer.to_bin()
    with new_folder(out_dir, is_only_package) as folder:
        writer = PackageWriter(folder, config)
        rows = []
        total = sum({place.file: place.size for place in writer.places}.values())
        done = 0
        for place, quantized in _quantized(checkpoint, writer.places, matrices):
            writer.add_tensor(
                place, quantized.values, quantized.scale, quantized.snr_db, quantized.clipped
            )
            rows.append(_report(place, quantized))
            done += place.size if place.file == f"{place.key}.bin" else 0
            if progress:
                progress(place.key, done, total)
        model = writer.finish(matrices.name, tokenizer)
    return QuantizeReport(out_dir, model, tuple(rows))


def _quantized(
    checkpoint: Checkpoint, places: tuple[TensorPlace, ...], matrices: Scheme
) -> Iterator[tuple[TensorPlace, Quantized]]:
    norms = Int16PowerOfTwo()
    embedding: Quantized | None = None
    for place in places:
        if place.part == HEAD_PART and checkpoint.config.tie_word_embeddings:
            assert embedding is not None
            yield place, embedding
            return
        scheme = norms if place.dtype is DType.INT16 else matrices
        quantized = scheme.quantize(checkpoint.tensors[checkpoint_name(place)])
        if place.part == EMBED_PART and checkpoint.config.tie_word_embeddings:
            embedding = quantized
        yield place, quantized
        del quantized


def checkpoint_name(place: TensorPlace) -> str:
    """Returns what checkpoints, after Hugging Face, call the tensor of a package's place."""
    return _OUTSIDE_LAYERS.get(place.part) or layer_tensor(place.layer, place.part)


def _report(place: TensorPlace, quantized: Quantized) -> TensorReport:
    return TensorReport(
        name=place.key,
        file=place.file,
        dtype=place.dtype.name.lower(),
        shape=quantized.values.shape,
        size=place.size,
        scale=quantized.scale,
        snr_db=quantized.snr_db,
        clipped=quantized.clipped,
    )
