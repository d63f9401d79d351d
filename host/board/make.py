"""`host quantize`, `host headers` and `host evaluate`: what needs no board."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from host.board import ui
from host.errors import HostError, OutputError
from host.models import (
    default_output,
    is_package,
    name_of,
    remember_package,
    resolve_model,
    resolve_package,
)

if TYPE_CHECKING:
    from host.evaluate import EvaluationReport
    from host.quantize import QuantizeReport


def make_package(
    model: str | None,
    output: Path | None = None,
    *,
    tokenizer: Path | None = None,
    force: bool = False,
) -> QuantizeReport:
    """Quantizes a checkpoint, and makes the package the one that commands take by default.

    Args:
        model: What the user wrote; the bundled model where omitted.
        output: The package's folder; `default_output` where omitted.
        tokenizer: Of a llama2.c ``.bin``.
        force: Replace a package of another model.

    Raises:
        InputError: The checkpoint is missing, damaged or not supported.
        OutputError: The folder is taken, or the disk is full.
    """
    from host.checkpoint import load_checkpoint
    from host.checkpoint.model import model_name
    from host.quantize import quantize_checkpoint

    path = resolve_model(model)
    folder = output or default_output(path)
    if not force:
        _refuse_another(folder, model_name(name_of(path)))
    checkpoint = load_checkpoint(path, tokenizer)
    with ui.progress("quantize", 100, counts="%") as advance:
        before = 0

        def report(_: str, done: int, total: int) -> None:
            nonlocal before
            percent = 100 * done // total
            advance(percent - before)
            before = percent

        made = quantize_checkpoint(checkpoint, folder, report)
    try:
        remember_package(folder)
    except HostError as exc:
        ui.note(f"The package is made, but commands have to be given its name: {exc}")
    return made


def show_package(made: QuantizeReport, *, as_json: bool = False) -> None:
    """Prints what became of each tensor."""
    if as_json:
        ui.show_json(
            {
                "package": str(made.path),
                "fingerprint": made.model.fingerprint.hex(),
                "weight_bytes": made.weight_bytes,
                "tensors": [
                    {
                        "name": row.name,
                        "file": row.file,
                        "dtype": row.dtype,
                        "shape": list(row.shape),
                        "bytes": row.size,
                        "scale": row.scale.value,
                        "snr_db": row.snr_db,
                        "clipped": row.clipped,
                    }
                    for row in made.rows
                ],
            }
        )
        return
    rows = [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            row.dtype,
            f"{row.size:,}",
            f"{row.scale.value:.6g}",
            "-" if row.snr_db is None else f"{row.snr_db:.1f}",
            f"{100 * row.clipped:.3f} %",
        )
        for row in made.rows
    ]
    ui.table("", ("tensor", "shape", "type", "bytes", "scale", "SNR dB", "clipped"), rows)
    ui.say(
        f"{made.path}: {made.weight_bytes:,} bytes of weights, fingerprint "
        f"{made.model.fingerprint.hex()[:8]}"
    )


def _refuse_another(folder: Path, name: str) -> None:
    from host.package import Package

    if not is_package(folder):
        return
    try:
        there = Package.open(folder, verify=False).config.name
    except HostError:
        return  # damaged: to be made again
    if there != name:
        raise OutputError(
            f"{folder} holds the package of another model, {there}",
            "Choose another -o, or replace it with --force",
        )


def make_headers(package: str | None, output: Path | None) -> Path:
    """Writes the C header of a package; returns its path.

    Args:
        package: What the user wrote.
        output: Folder to write to; the firmware's own in a checkout, else this one, where omitted.
    """
    from host.headers import generate_headers

    firmware = Path("firmware/src")
    folder = output or (firmware if firmware.is_dir() else Path())
    return generate_headers(resolve_package(package), folder)


def evaluate_model(
    model: str | None, text: Path, *, positions: int, tokenizer: Path | None = None
) -> EvaluationReport:
    """Quantizes a checkpoint into a temporary folder and compares it with the float model.

    Args:
        model: What the user wrote; the bundled model where omitted.
        text: A text file.
        positions: Tokens of it to predict.
        tokenizer: Of a llama2.c ``.bin``.

    Raises:
        InputError: The checkpoint or the text is missing, damaged or not supported.
    """
    from host.board.verify import read_text
    from host.checkpoint import load_checkpoint
    from host.evaluate.report import evaluate
    from host.quantize import quantize_checkpoint

    checkpoint = load_checkpoint(resolve_model(model), tokenizer)
    content = read_text(text)
    with (
        tempfile.TemporaryDirectory(prefix="host-evaluate-") as folder,
        ui.progress("evaluate", positions, counts="positions") as advance,
    ):
        package = Path(folder) / "package"
        quantize_checkpoint(checkpoint, package)
        return evaluate(package, checkpoint, content, positions, advance)


def show_evaluation(report: EvaluationReport, *, as_json: bool = False) -> None:
    """Prints how far the integers are from the float model."""
    if as_json:
        ui.show_json(report.to_json())
        return
    models = {
        "float model": report.float_model,
        "float arithmetic, integer weights": report.rounded,
        "integer engine": report.engine,
    }
    rows = [
        (
            name,
            f"{scores.mean_kl:.5f}",
            f"{100 * scores.top1:.2f} %",
            f"{scores.perplexity:.4f}",
            f"{scores.bits_per_byte:.4f}",
        )
        for name, scores in models.items()
    ]
    title = f"{report.model} on {report.positions:,} positions ({report.text_bytes:,} bytes)"
    ui.table(title, ("", "mean KL, nats", "top-1", "perplexity", "bits a byte"), rows)
    for prompt in report.prompts:
        ui.say(f"{prompt.prompt!r}: {'the same first' if prompt.agrees else 'another first'}")
        for name, tokens in (("float ", prompt.float_model), ("engine", prompt.engine)):
            likely = ", ".join(f"{token.text!r} {token.probability:.3f}" for token in tokens)
            ui.say(f"  {name} {likely}")
