"""Trains a Llama-family model from text files and saves it as a Hugging Face directory.

    python -m tools.train_model tools/train.toml

One TOML file says everything. With a teacher (a llama2.c checkpoint of the same
vocabulary) the network learns from the teacher's whole distribution, over rows that
the teacher wrote and over the real text; without one, from the text alone. An
interrupted run goes on from its last checkpoint when started again.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

from tools.train_data import (
    Corpus,
    find_texts,
    make_corpus,
    random_rows,
    read_stories,
    teacher_rows,
    without_overlap,
)
from tools.train_network import (
    Llama,
    Shape,
    TrainingError,
    load_llama2c,
    save_huggingface,
    write_json,
)
from tools.train_optimizer import Muon
from tools.train_quantize import clip_outliers, straight_through
from tools.train_vocabulary import (
    convert_llama2c_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


@dataclass(frozen=True)
class Data:
    """Where the text comes from. Paths are relative to the configuration file."""

    texts: list[str]
    separator: str = r"<\|endoftext\|>"
    exclude: list[str] = field(default_factory=list)
    held_out_every: int = 20
    tokenizer: str = ""


@dataclass(frozen=True)
class Teacher:
    """A llama2.c checkpoint to distil from; no path, no teacher."""

    checkpoint: str = ""
    rows: int = 0
    temperature: float = 1.0
    real_rows: float = 0.25
    real_weight: float = 0.5


@dataclass(frozen=True)
class Training:
    """The schedule. `minutes` (0: no limit) ends a run early and shortens its schedule so."""

    steps: int
    batch_rows: int = 16
    row_length: int = 512
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    weight_decay: float = 0.1
    warmup: float = 0.02
    rounded_from: float = 0.8
    clip_deviations: float = 4.0
    minutes: float = 0.0
    evaluate_every: int = 200
    seed: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Configuration:
    """A whole configuration file: `output` gets the model, `work` what a run needs meanwhile."""

    output: Path
    work: Path
    data: Data
    model: Shape
    teacher: Teacher
    training: Training


Section = TypeVar("Section", Data, Shape, Teacher, Training)


def _section(kind: type[Section], name: str, table: dict[str, Any]) -> Section:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise TrainingError(
            f"[{name}] has no setting {unknown[0]!r}: choose from {', '.join(sorted(known))}."
        )
    try:
        return kind(**table)
    except TypeError as error:
        raise TrainingError(f"[{name}] lacks a setting ({error}): add it.") from error


def read_configuration(path: Path) -> Configuration:
    """Reads the TOML file; raises TrainingError naming the first setting that is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): correct it.") from error
    here = path.resolve().parent
    data = dict(tables.get("data", {}))
    for name in ("texts", "exclude"):
        data[name] = [str(here / entry) for entry in data.get(name, [])]
    teacher = dict(tables.get("teacher", {}))
    for table, name in ((data, "tokenizer"), (teacher, "checkpoint")):
        if table.get(name):
            table[name] = str(here / table[name])
    if "output" not in tables or "work" not in tables:
        raise TrainingError(f"{path} lacks `output` or `work`: name both folders.")
    return Configuration(
        output=here / tables["output"],
        work=here / tables["work"],
        data=_section(Data, "data", data),
        model=_section(Shape, "model", tables.get("model", {})),
        teacher=_section(Teacher, "teacher", teacher),
        training=_section(Training, "training", tables.get("training", {})),
    )


def schedule(progress: float, warmup: float) -> float:
    """Learning-rate factor at `progress` in 0..1: linear warm-up, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Run:
    """A training run: the network, what it learns from, and how far it has come."""

    def __init__(self, configuration: Configuration, console: Console) -> None:
        self.configuration = configuration
        self.console = console
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = configuration.training
        if settings.row_length > configuration.model.context:
            raise TrainingError(
                f"row_length = {settings.row_length} is over the model's context of "
                f"{configuration.model.context}: lower it or raise `context`."
            )
        if settings.threads:
            torch.set_num_threads(settings.threads)
        configuration.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer_model = configuration.work / "tokenizer.model"
        self._make_tokenizer()
        self.corpus = self._make_corpus()
        self.teacher: Llama | None = None
        self.teacher_rows = torch.empty((0, settings.row_length), dtype=torch.int16)
        self._prepare_teacher()
        self.network = Llama(configuration.model)
        self.network.initialize(settings.seed)
        self.network.to(self.device)
        matrices = [
            p for n, p in self.network.named_parameters() if p.ndim == 2 and ".layers." in n
        ]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.network.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, settings.matrix_rate, 0.95, settings.weight_decay),
            torch.optim.AdamW(others, settings.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [settings.matrix_rate, settings.other_rate]
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self.teacher_held_out: float | None = None
        self._resume()

    def _make_tokenizer(self) -> None:
        data = self.configuration.data
        if self.tokenizer_model.exists():
            return
        if not data.tokenizer:
            train_tokenizer(
                find_texts([Path(p) for p in data.texts]),
                self.configuration.model.vocabulary,
                self.tokenizer_model,
            )
        elif data.tokenizer.endswith(".bin"):
            convert_llama2c_tokenizer(Path(data.tokenizer), self.tokenizer_model)
        else:
            self.tokenizer_model.write_bytes(Path(data.tokenizer).read_bytes())

    def _make_corpus(self) -> Corpus:
        data = self.configuration.data
        tokenizer = load_tokenizer(self.tokenizer_model)
        if tokenizer.vocab_size() != self.configuration.model.vocabulary:
            raise TrainingError(
                f"the tokenizer has {tokenizer.vocab_size()} pieces and [model] vocabulary says "
                f"{self.configuration.model.vocabulary}: make them equal."
            )
        excluded = [Path(path) for path in data.exclude]
        texts = [
            path
            for path in find_texts([Path(p) for p in data.texts])
            if path.resolve() not in {e.resolve() for e in excluded}
        ]
        stories = read_stories(texts, data.separator)
        kept = without_overlap(stories, excluded)
        corpus = make_corpus(kept, tokenizer, data.held_out_every)
        self.console.print(
            f"{len(kept)} of {len(stories)} stories kept, {len(corpus.train)} tokens to learn "
            f"from, {len(corpus.held_out)} held out",
            highlight=False,
        )
        return corpus

    def _prepare_teacher(self) -> None:
        teacher, settings = self.configuration.teacher, self.configuration.training
        if not teacher.checkpoint:
            return
        self.teacher = load_llama2c(Path(teacher.checkpoint)).eval().requires_grad_(False)
        if self.teacher.shape.vocabulary != self.configuration.model.vocabulary:
            raise TrainingError(
                f"{teacher.checkpoint} has a vocabulary of {self.teacher.shape.vocabulary}, the "
                "model another: distillation needs the same."
            )
        self.console.print(f"teacher rows: {teacher.rows}", highlight=False)
        self.teacher_rows = teacher_rows(
            self.teacher,
            teacher.rows,
            settings.row_length,
            temperature=teacher.temperature,
            seed=1000 * settings.seed,
            cache=self.configuration.work / "teacher-rows",
        )
        self.teacher.to(self.device)

    @property
    def progress(self) -> float:
        """How far the schedule has come, 0 to 1, by steps or by the clock."""
        settings = self.configuration.training
        by_clock = self.seconds / (60 * settings.minutes) if settings.minutes else 0.0
        return min(1.0, max(self.step / settings.steps, by_clock))

    def batch(self) -> tuple[Tensor, int]:
        """The step's rows, (batch, length) ids, and how many of them, at the front, are text.

        They depend on the seed and the step alone: a resumed run sees what an unbroken one does.
        """
        settings, teacher = self.configuration.training, self.configuration.teacher
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        real = settings.batch_rows
        if len(self.teacher_rows):
            real = round(settings.batch_rows * teacher.real_rows)
        rows = random_rows(self.corpus.train, real, settings.row_length, generator)
        if real < settings.batch_rows:
            chosen = torch.randint(
                0, len(self.teacher_rows), (settings.batch_rows - real,), generator=generator
            )
            rows = torch.cat((rows, self.teacher_rows[chosen].long()))
        return rows.to(self.device), real

    def loss(self, rows: Tensor, real: int) -> Tensor:
        """Nats a token: cross-entropy of the text, KL divergence from the teacher, or both."""
        if self._rounding:
            logits = functional_call(self.network, straight_through(self.network), (rows,))
        else:
            logits = self.network(rows)
        predicted = functional.log_softmax(logits[:, :-1], dim=-1)
        hard = functional.nll_loss(
            predicted[:real].flatten(0, 1), rows[:real, 1:].flatten(), reduction="sum"
        )
        tokens = rows.shape[0] * (rows.shape[1] - 1)
        if self.teacher is None:
            return hard / tokens
        with torch.no_grad():
            wanted = functional.log_softmax(self.teacher(rows)[:, :-1], dim=-1)
        weight = self.configuration.teacher.real_weight
        soft = functional.kl_div(predicted, wanted, log_target=True, reduction="none").sum(dim=-1)
        return (weight * hard + (1 - weight) * soft[:real].sum() + soft[real:].sum()) / tokens

    def train_step(self) -> float:
        """Takes one step and returns its loss."""
        settings = self.configuration.training
        started = time.perf_counter()
        factor = schedule(self.progress, settings.warmup)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        rows, real = self.batch()
        loss = self.loss(rows, real)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        if settings.clip_deviations:
            clip_outliers(self.network, settings.clip_deviations)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return float(loss.detach())

    @property
    def _rounding(self) -> bool:
        return self.progress >= self.configuration.training.rounded_from

    @torch.inference_mode()
    def held_out_loss(self, network: Llama) -> float:
        """Nats a token on the held-out stories, in consecutive rows."""
        length = min(self.configuration.training.row_length, len(self.corpus.held_out))
        rows = len(self.corpus.held_out) // length
        ids = self.corpus.held_out[: rows * length].view(rows, length).to(self.device)
        logits = network(ids)[:, :-1]
        return float(functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    def train(self) -> None:
        """Trains to the end of the schedule, saving a checkpoint at every evaluation."""
        settings = self.configuration.training
        if self.teacher is not None:
            self.teacher_held_out = round(self.held_out_loss(self.teacher), 4)
            self.console.print(f"teacher's held-out loss: {self.teacher_held_out}")
        remaining: Iterable[int] = range(self.step, settings.steps)
        if self.console.is_terminal:
            remaining = track(
                remaining,
                "training",
                console=self.console,
                completed=self.step,
                total=settings.steps,
            )
        recent: list[float] = []
        for _ in remaining:
            if self.progress >= 1:
                break
            recent.append(self.train_step())
            if self.step % settings.evaluate_every == 0:
                self._report(recent)
                recent = []
                self.save()
        self._report(recent)
        self.save()

    def _report(self, recent: list[float]) -> None:
        if not recent:
            return
        tokens = self.step * self.configuration.training.batch_rows
        entry = {
            "step": self.step,
            "tokens": tokens * self.configuration.training.row_length,
            "minutes": round(self.seconds / 60, 2),
            "loss": round(sum(recent) / len(recent), 4),
            "held_out": round(self.held_out_loss(self.network), 4),
        }
        self.curve.append(entry)
        self.console.print(json.dumps(entry), highlight=False, soft_wrap=True)

    @property
    def _checkpoint(self) -> Path:
        return self.configuration.work / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint, and the model as it is now to the output directory."""
        temporary = self._checkpoint.with_suffix(".part")
        torch.save(
            {
                "fingerprint": self._fingerprint(),
                "network": self.network.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
                "curve": self.curve,
            },
            temporary,
        )
        temporary.replace(self._checkpoint)
        output = self.configuration.output
        save_huggingface(self.network, output)
        save_tokenizer(self.tokenizer_model, output, self.configuration.model.context)
        report = {"teacher_held_out": self.teacher_held_out, "curve": self.curve}
        write_json(output / "training.json", {**self._description(), **report})

    def _description(self) -> dict[str, Any]:
        c = self.configuration
        return {
            "model": asdict(c.model),
            "training": asdict(c.training),
            "teacher": {**asdict(c.teacher), "checkpoint": Path(c.teacher.checkpoint).name},
            "texts": [Path(text).name for text in c.data.texts],
            "excluded": [Path(text).name for text in c.data.exclude],
            "real_tokens": len(self.corpus.train),
            "teacher_tokens": self.teacher_rows.numel(),
        }

    def _fingerprint(self) -> str:
        """What must be the same for a checkpoint to be continued: all but the schedule's end."""
        description = self._description()
        for name in ("minutes", "threads", "evaluate_every"):
            del description["training"][name]
        return json.dumps(description, sort_keys=True)

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        saved = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        if saved["fingerprint"] != self._fingerprint():
            raise TrainingError(
                f"{self._checkpoint} is of another configuration: "
                "delete it, or name another `work`."
            )
        self.network.load_state_dict(saved["network"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], saved["curve"]
        self.console.print(f"going on from step {self.step}", highlight=False)


def main(configuration: Path) -> None:
    """Train the model that CONFIGURATION (a TOML file) describes."""
    try:
        Run(read_configuration(configuration), Console()).train()
    except TrainingError as error:
        print(f"train_model: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
