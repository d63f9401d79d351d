"""Trains a Llama-family model from text files and saves it as a Hugging Face directory.

    python -m tools.train_model tools/train.toml

One TOML file says everything. With a teacher (a checkpoint of the same tokenizer, a
Hugging Face folder or a llama2.c `.bin`) the network learns from the teacher's whole
distribution, over rows that the teacher wrote and over the real text; without one, from the
text alone. An interrupted run goes on from its last checkpoint when started again.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from host.atomic import write_file, writing
from host.checkpoint import load_checkpoint
from host.errors import InputError
from tools.train_command import told
from tools.train_data import (
    Corpus,
    encode_stories,
    find_texts,
    fingerprint,
    hold_out,
    network_fingerprint,
    random_rows,
    read_stories,
    teacher_rows,
    without_overlap,
)
from tools.train_network import Llama, make_network, save_huggingface, write_json
from tools.train_optimizer import Muon
from tools.train_quantize import clip_outliers, straight_through
from tools.train_settings import Configuration, read_configuration
from tools.train_vocabulary import open_tokenizer, read_tokenizer, save_tokenizer, train_tokenizer


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
        if settings.threads:
            torch.set_num_threads(settings.threads)
        with writing(configuration.work):
            configuration.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer_model = b""
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
        self.fingerprint = self._fingerprint()
        self._resume()

    def _make_corpus(self) -> Corpus:
        data, vocabulary = self.configuration.data, self.configuration.model.vocabulary
        excluded = {path.resolve() for path in data.exclude}
        texts = [path for path in find_texts(data.texts) if path.resolve() not in excluded]
        stories = read_stories(texts, data.separator)
        kept = without_overlap(stories, data.exclude)
        train, held_out = hold_out(kept, data.held_out_every)
        self.tokenizer = data.tokenizer or self._trained_tokenizer(train)
        self.tokenizer_model = read_tokenizer(self.tokenizer)
        tokenizer = open_tokenizer(self.tokenizer_model, str(self.tokenizer))
        if tokenizer.vocab_size() != vocabulary:
            raise InputError(
                f"The tokenizer has {tokenizer.vocab_size()} pieces and [model] vocabulary says "
                f"{vocabulary}",
                "Make them equal",
            )
        corpus = Corpus(encode_stories(train, tokenizer), encode_stories(held_out, tokenizer))
        if len(corpus.train) < self.configuration.training.row_length:
            raise InputError(
                f"The text has {len(corpus.train)} tokens, fewer than a row of "
                f"{self.configuration.training.row_length}",
                "Add text or lower `row_length`",
            )
        self._say(
            f"{len(kept)} of {len(stories)} stories kept, {len(corpus.train)} tokens to learn "
            f"from, {len(corpus.held_out)} held out"
        )
        return corpus

    def _trained_tokenizer(self, stories: list[str]) -> Path:
        """One learnt from the stories and kept in `work`, under a name that tells from what."""
        vocabulary = self.configuration.model.vocabulary
        name = f"tokenizer-{fingerprint(vocabulary, stories)}.model"
        path = self.configuration.work / name
        if not path.exists():
            write_file(path, train_tokenizer(stories, vocabulary))
        return path

    def _prepare_teacher(self) -> None:
        teacher, settings = self.configuration.teacher, self.configuration.training
        if teacher is None:
            return
        # The tokenizer, where the teacher has one of its own, is the same.
        network = make_network(load_checkpoint(teacher.checkpoint, self.tokenizer))
        self.teacher = network.requires_grad_(False)
        shape = network.shape
        if shape.vocabulary != self.configuration.model.vocabulary:
            raise InputError(
                f"{teacher.checkpoint} has a vocabulary of {shape.vocabulary}, the model another",
                "Name a teacher of the model's tokenizer",
            )
        if shape.context < settings.row_length:
            raise InputError(
                f"row_length = {settings.row_length} is over the teacher's context of "
                f"{shape.context}",
                "Lower it",
            )
        self._say(f"teacher rows: {teacher.rows}")
        self.teacher_rows = teacher_rows(
            network,
            teacher.rows,
            settings.row_length,
            temperature=teacher.temperature,
            seed=1000 * settings.seed,
            work=self.configuration.work,
            console=self.console,
        )
        network.to(self.device)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

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
        if teacher is not None and len(self.teacher_rows):
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
        teacher = self.configuration.teacher
        if self.teacher is None or teacher is None:
            return hard / tokens
        with torch.no_grad():
            wanted = functional.log_softmax(self.teacher(rows)[:, :-1], dim=-1)
        weight = teacher.real_weight
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
        """Nats a token on the held-out stories, in consecutive rows, a step's at once."""
        settings = self.configuration.training
        length = min(settings.row_length, len(self.corpus.held_out))
        rows = self.corpus.held_out[: len(self.corpus.held_out) // length * length].view(-1, length)
        nats = 0.0
        for batch in torch.split(rows, settings.batch_rows):
            ids = batch.to(self.device)
            logits = network(ids)[:, :-1].flatten(0, 1)
            nats += float(functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum"))
        return nats / (len(rows) * (length - 1))

    def train(self) -> None:
        """Trains to the end of the schedule, saving a checkpoint at every evaluation."""
        settings, output = self.configuration.training, self.configuration.output
        with writing(output):  # now, and not after an hour
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
        if self.teacher is not None:
            self.teacher_held_out = round(self.held_out_loss(self.teacher), 4)
            self._say(f"teacher's held-out loss: {self.teacher_held_out}")
        recent: list[float] = []
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task("training", total=100, completed=round(100 * self.progress))
            while self.progress < 1:
                recent.append(self.train_step())
                bar.update(task, completed=100 * self.progress)
                if not math.isfinite(recent[-1]):
                    raise InputError(
                        f"The loss after step {self.step} is no number",
                        "Lower `matrix_rate` or `other_rate`, and name another `work`",
                    )
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
        self._say(json.dumps(entry))

    @property
    def _checkpoint(self) -> Path:
        return self.configuration.work / "checkpoint.safetensors"

    def save(self) -> None:
        """Writes the checkpoint, and the model as it is now to the output directory."""
        tensors = {f"network.{name}": w for name, w in self.network.state_dict().items()}
        for place, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{place}.{index}.{name}": value for name, value in state.items()}
        reached = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        write_file(self._checkpoint, save(tensors, metadata={"run": json.dumps(reached)}))
        output = self.configuration.output
        save_huggingface(self.network, output)
        save_tokenizer(self.tokenizer_model, output, self.configuration.model.context)
        report = {"teacher_held_out": self.teacher_held_out, "curve": self.curve}
        write_json(output / "training.json", {**self._description(), **report})

    def _description(self) -> dict[str, Any]:
        c = self.configuration
        teacher = c.teacher and {**asdict(c.teacher), "checkpoint": c.teacher.checkpoint.name}
        return {
            "model": asdict(c.model),
            "training": asdict(c.training),
            "teacher": teacher,
            "texts": [text.name for text in c.data.texts],
            "excluded": [text.name for text in c.data.exclude],
            "real_tokens": len(self.corpus.train),
            "teacher_tokens": self.teacher_rows.numel(),
        }

    def _fingerprint(self) -> str:
        """Of what must be the same for a checkpoint to be continued.

        That is all but the schedule's end, which may be moved, and what does not show in the
        weights.
        """
        description = self._description()
        for name in ("steps", "minutes", "threads", "evaluate_every"):
            del description["training"][name]
        teacher = self.teacher and network_fingerprint(self.teacher)
        return fingerprint(description, self.corpus.fingerprint, self.tokenizer_model, teacher)

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        try:
            with safe_open(self._checkpoint, "pt", device=str(self.device)) as file:
                reached = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._checkpoint} is damaged ({error})", "Delete it to begin anew"
            ) from error
        if reached["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{self._checkpoint} is of another configuration",
                "Delete it, or name another `work`",
            )
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for place, index, name in (key.split(".") for key in tensors if key[0].isdigit()):
            states[int(place)].setdefault(int(index), {})[name] = tensors[f"{place}.{index}.{name}"]
        self.network.load_state_dict(
            {name: tensors[f"network.{name}"] for name in self.network.state_dict()}
        )
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step, self.seconds, self.curve = reached["step"], reached["seconds"], reached["curve"]
        self._say(f"going on from step {self.step}")


def main(configuration: Path) -> None:
    """Train the model that CONFIGURATION (a TOML file) describes."""
    with told("train_model"):
        Run(read_configuration(configuration), Console()).train()


if __name__ == "__main__":
    typer.run(main)
