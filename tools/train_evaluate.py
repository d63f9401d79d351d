"""Measures models on a text: bits per byte, what INT8 rounding costs, sample stories.

    python -m tools.train_evaluate TEXT MODEL [MODEL ...] [--samples 10]

A MODEL is a Hugging Face directory, or a llama2.c `.bin` with its `tok*.bin` beside it. All
are measured alike: the text is encoded whole, one bos token before it, and read in
windows of `--context` tokens of which each after the first repeats half a window as
context; every token is scored once, and the bits are divided by the text's bytes.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import sentencepiece
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from tools.train_network import Llama, TrainingError, load_network, sample_rows
from tools.train_quantize import round_matrices
from tools.train_vocabulary import BOS, convert_llama2c_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Measurement:
    """What one model does on one text; KL in nats a token, float from rounded."""

    model: str
    parameters: int
    text_bytes: int
    tokens: int
    context: int
    nats_per_token: float
    bits_per_byte: float
    int8_bits_per_byte: float
    int8_mean_kl: float
    int8_top1: float


def open_tokenizer(model: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer in a model directory, or of a llama2.c checkpoint's only `tok*.bin`."""
    if model.is_dir():
        return load_tokenizer(model / "tokenizer.model")
    found = sorted(model.parent.glob("tok*.bin"))
    if len(found) != 1:
        raise TrainingError(
            f"{model.parent} has {len(found)} tok*.bin: put the one beside {model}."
        )
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "tokenizer.model"
        convert_llama2c_tokenizer(found[0], converted)
        return load_tokenizer(converted)


def windows(length: int, context: int) -> Iterator[tuple[int, int]]:
    """Where each window starts, and how many of its first tokens only serve as context.

    Together the windows score every token but the first exactly once.
    """
    stride = context // 2
    yield 0, 1
    start = 0
    while start + context < length:
        start += stride
        yield start, context - stride


@torch.inference_mode()
def compare(network: Llama, ids: Tensor, context: int) -> tuple[float, float, float, float]:
    """Nats of `ids` (1-D) under the network and its INT8 rounding, mean KL, top-1 agreement."""
    rounded = deepcopy(network)
    round_matrices(rounded)
    nats = rounded_nats = divergence = 0.0
    agreeing = count = 0
    for start, skipped in windows(len(ids), context):
        window = ids[None, start : start + context]
        wanted = window[0, skipped:]
        exact = functional.log_softmax(network(window)[0, skipped - 1 : -1].double(), dim=-1)
        rough = functional.log_softmax(rounded(window)[0, skipped - 1 : -1].double(), dim=-1)
        nats += float(functional.nll_loss(exact, wanted, reduction="sum"))
        rounded_nats += float(functional.nll_loss(rough, wanted, reduction="sum"))
        divergence += float(functional.kl_div(rough, exact, log_target=True, reduction="sum"))
        agreeing += int((exact.argmax(-1) == rough.argmax(-1)).sum())
        count += len(wanted)
    return nats, rounded_nats, divergence / count, agreeing / count


def measure(model: Path, text: str, context: int) -> Measurement:
    """Measures one model on `text`, in windows of `context` tokens."""
    network = load_network(model)
    if context > network.shape.context:
        raise TrainingError(
            f"{model} has a context of {network.shape.context}: lower --context to that."
        )
    ids = torch.tensor([BOS, *open_tokenizer(model).encode(text)])
    nats, rounded_nats, divergence, agreement = compare(network, ids, context)
    size = len(text.encode())
    return Measurement(
        model=model.name,
        parameters=sum(weight.numel() for weight in network.parameters()),
        text_bytes=size,
        tokens=len(ids) - 1,
        context=context,
        nats_per_token=nats / (len(ids) - 1),
        bits_per_byte=nats / math.log(2) / size,
        int8_bits_per_byte=rounded_nats / math.log(2) / size,
        int8_mean_kl=divergence,
        int8_top1=agreement,
    )


def sample_story(model: Path, seed: int, temperature: float) -> str:
    """One story drawn from the model, up to its next bos or eos token or a full context."""
    network = load_network(model)
    generator = torch.Generator().manual_seed(seed)
    length = network.shape.context
    ids = sample_rows(network, 1, length, first=BOS, temperature=temperature, generator=generator)[
        0, 1:
    ].tolist()
    end = next((place for place, token in enumerate(ids) if token in (1, 2)), len(ids))
    return str(open_tokenizer(model).decode(ids[:end]))


def main(
    text: Annotated[Path, typer.Argument(help="A UTF-8 text that no model was trained on.")],
    models: Annotated[list[Path], typer.Argument(help="Model directories or llama2.c .bin files.")],
    context: Annotated[int, typer.Option(help="Tokens a window.", min=2)] = 512,
    samples: Annotated[int, typer.Option(help="Stories to sample, seeds 0 up.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="Of the samples.", min=0.01)] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Measure MODELS on TEXT and print them side by side."""
    try:
        content = _read(text)
        if not content:
            raise TrainingError(f"{text} is empty: name a text to measure on.")
        measured = [measure(model, content, context) for model in models]
    except (TrainingError, OSError) as error:
        print(f"train_evaluate: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if as_json:
        for entry in measured:
            print(json.dumps(vars(entry)))
    else:
        _print_table(measured)
    for seed in range(samples):
        for model in models:
            print(f"\n[{model.name}, seed {seed}]\n{sample_story(model, seed, temperature)}")


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{text} cannot be read ({error}): name a UTF-8 text.") from error


def _print_table(measured: list[Measurement]) -> None:
    table = Table("model", "parameters", "tokens", "bits/byte", "INT8 bits/byte", "KL", "top-1")
    for entry in measured:
        table.add_row(
            entry.model,
            f"{entry.parameters:,}",
            f"{entry.tokens:,}",
            f"{entry.bits_per_byte:.4f}",
            f"{entry.int8_bits_per_byte:.4f}",
            f"{entry.int8_mean_kl:.5f}",
            f"{100 * entry.int8_top1:.2f} %",
        )
    Console().print(table)
    base = measured[-1]
    for entry in measured[:-1]:
        ratio = entry.bits_per_byte / base.bits_per_byte
        print(f"{entry.model}: {ratio:.4f} times the bits per byte of {base.model}")


if __name__ == "__main__":
    typer.run(main)
