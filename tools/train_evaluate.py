"""Measures models on a text: bits per byte, what INT8 rounding costs, sample stories.

    python -m tools.train_evaluate TEXT [MODEL ...] [--samples 10]

A MODEL is what `host quantize` takes, the bundled one where none is named. All are measured
alike: the text is encoded whole, one bos token before it where the model was trained so, and
read in windows of `--context` tokens of which each after the first repeats half a window as
context; every token after the first is scored once, and the bits are divided by the text's
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional

from host.board import ui
from host.checkpoint import LlamaConfig, load_checkpoint
from host.errors import InputError
from host.models import name_of, resolve_model
from host.tokenizer import Tokenizer
from tools.train_command import read_text, told
from tools.train_network import Llama, make_network, sample_rows
from tools.train_quantize import round_matrices


@dataclass(frozen=True)
class Model:
    """A model to measure, all of it in memory."""

    name: str
    config: LlamaConfig
    network: Llama
    tokenizer: Tokenizer


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


def open_model(path: Path) -> Model:
    """Opens a Hugging Face folder or a llama2.c `.bin`, as the host tool reads it."""
    checkpoint = load_checkpoint(path)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    return Model(name_of(path), checkpoint.config, make_network(checkpoint), tokenizer)


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


def measure(model: Model, text: str, context: int) -> Measurement:
    """Measures one model on `text`, in windows of `context` tokens."""
    network = model.network
    if context > network.shape.context:
        raise InputError(
            f"{model.name} has a context of {network.shape.context}", "Lower --context to that"
        )
    start = [model.config.bos_token_id] if model.config.add_bos_token else []
    ids = torch.tensor([*start, *model.tokenizer.encode(text)])
    if len(ids) < 2:
        raise InputError("The text is too short to predict anything", "Name a longer one")
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


def sample_story(model: Model, seed: int, temperature: float) -> str:
    """One story drawn from the model, up to its next bos or eos token or a full context."""
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    if bos < 0:
        raise InputError(f"{model.name} has no token that begins a text", "Leave out --samples")
    generator = torch.Generator().manual_seed(seed)
    length = model.network.shape.context
    rows = sample_rows(
        model.network, 1, length, first=bos, temperature=temperature, generator=generator
    )
    ids: list[int] = rows[0, 1:].tolist()
    end = next((place for place, token in enumerate(ids) if token in (bos, eos)), len(ids))
    return model.tokenizer.decode(ids[:end])


def main(
    text: Annotated[Path, typer.Argument(help="A UTF-8 text that no model was trained on.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Hugging Face folders, llama2.c .bin files, bundled models' names or hub ids; "
            "the bundled model where omitted.",
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens a window.", min=2)] = 512,
    samples: Annotated[int, typer.Option(help="Stories to sample, seeds 0 up.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="Of the samples.", min=0.01)] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Measure MODELS on TEXT and print them side by side."""
    with told("train_evaluate"):
        content = read_text(text)
        named: list[str | None] = [*models] if models else [None]
        opened = [open_model(resolve_model(model)) for model in named]
        measured = [measure(model, content, context) for model in opened]
        if as_json:
            for entry in measured:
                ui.show_json(vars(entry))
        else:
            _show(measured)
        for seed in range(samples):
            for model in opened:
                story = sample_story(model, seed, temperature)
                if as_json:
                    ui.show_json({"model": model.name, "seed": seed, "story": story})
                else:
                    ui.say(f"\n[{model.name}, seed {seed}]\n{story}")


def _show(measured: list[Measurement]) -> None:
    columns = ("model", "parameters", "tokens", "bits/byte", "INT8 bits/byte", "KL", "top-1")
    rows = [
        (
            entry.model,
            f"{entry.parameters:,}",
            f"{entry.tokens:,}",
            f"{entry.bits_per_byte:.4f}",
            f"{entry.int8_bits_per_byte:.4f}",
            f"{entry.int8_mean_kl:.5f}",
            f"{100 * entry.int8_top1:.2f} %",
        )
        for entry in measured
    ]
    ui.table("", columns, rows)
    base = measured[-1]
    for entry in measured[:-1]:
        ratio = entry.bits_per_byte / base.bits_per_byte
        ui.say(f"{entry.model}: {ratio:.4f} times the bits per byte of {base.model}")


if __name__ == "__main__":
    typer.run(main)
