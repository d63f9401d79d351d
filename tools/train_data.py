"""Texts for training: stories, what is held out of them, and rows of token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from host.atomic import write_file, writing
from host.errors import InputError
from tools.train_command import read_text
from tools.train_network import Llama, sample_rows
from tools.train_vocabulary import BOS

_SAMPLING_BATCH = 128


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that tell apart what a derived file was made from: JSON, or bytes."""
    whole = sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        whole.update(sha256(data).digest())
    return whole.hexdigest()[:16]


def network_fingerprint(network: Llama) -> str:
    """Of a network's sizes and weights."""
    weights = (weight.cpu().numpy().tobytes() for weight in network.state_dict().values())
    return fingerprint(asdict(network.shape), *weights)


def find_texts(paths: Sequence[Path]) -> list[Path]:
    """Each path is a text file, or a folder whose `.txt` files are meant."""
    texts: list[Path] = []
    for path in paths:
        texts.extend(sorted(path.glob("**/*.txt")) if path.is_dir() else [path])
    if not texts:
        raise InputError(f"There is no .txt file in {', '.join(map(str, paths))}", "Name a text")
    return texts


def read_stories(texts: Sequence[Path], separator: str) -> list[str]:
    """The stripped, non-empty pieces between matches of the regular expression `separator`."""
    pattern = re.compile(separator)
    stories: list[str] = []
    for text in texts:
        # What groups of the separator match stands between the pieces.
        pieces = pattern.split(read_text(text))[:: pattern.groups + 1]
        stories.extend(piece.strip() for piece in pieces if piece.strip())
    return stories


def _paragraphs(text: str) -> set[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) > 20}


def without_overlap(stories: list[str], excluded: Sequence[Path]) -> list[str]:
    """Drops each story that shares a paragraph of over 20 characters with an excluded text."""
    known: set[str] = set()
    for path in excluded:
        known |= _paragraphs(read_text(path))
    return [story for story in stories if not _paragraphs(story) & known]


def hold_out(stories: list[str], every: int) -> tuple[list[str], list[str]]:
    """The stories to learn from, and each `every`-th, which is kept out of training."""
    held_out = stories[every - 1 :: every]
    if not held_out:
        raise InputError(
            f"{len(stories)} stories are too few to hold out one in {every}",
            "Add text or lower `held_out_every`",
        )
    return [s for index, s in enumerate(stories) if (index + 1) % every], held_out


@dataclass(frozen=True)
class Corpus:
    """Token ids of the texts, each story led by the bos token: int64, 1-D."""

    train: Tensor
    held_out: Tensor

    @property
    def fingerprint(self) -> str:
        """Of the ids."""
        return fingerprint(self.train.numpy().tobytes(), self.held_out.numpy().tobytes())


def encode_stories(stories: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> Tensor:
    """Token ids of the stories, each led by the bos token: int64, 1-D."""
    ids = [np.array([BOS, *tokenizer.encode(story)], np.int64) for story in stories]
    return torch.from_numpy(np.concatenate(ids))


def random_rows(stream: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """`rows` windows of `length` ids at random places of the stream, (rows, length)."""
    starts = torch.randint(0, len(stream) - length + 1, (rows,), generator=generator)
    return stream[starts[:, None] + torch.arange(length)]


def teacher_rows(
    teacher: Llama,
    count: int,
    length: int,
    *,
    temperature: float,
    seed: int,
    work: Path,
    console: Console,
) -> Tensor:
    """Samples `count` rows from the teacher, int16 or int32 (count, length).

    Batches are kept in a folder of `work`, so that an interrupted run does not sample twice; its
    name tells what they were drawn from. Batch i is drawn from seed + i.
    """
    drawn_from = fingerprint(network_fingerprint(teacher), length, temperature, seed)
    cache = work / f"teacher-rows-{drawn_from}"
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    dtype = torch.int16 if teacher.shape.vocabulary <= 1 << 15 else torch.int32
    batches = [torch.empty((0, length), dtype=dtype)]
    for index in track(
        range(-(-count // _SAMPLING_BATCH)),
        "the teacher's rows",
        console=console,
        disable=not console.is_terminal,
    ):
        path = cache / f"{index:04d}.safetensors"
        if not path.exists():
            rows = sample_rows(
                teacher,
                _SAMPLING_BATCH,
                length,
                first=BOS,
                temperature=temperature,
                generator=torch.Generator().manual_seed(seed + index),
            )
            write_file(path, save({"rows": rows.to(dtype)}))
        try:
            batches.append(load_file(path)["rows"])
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error})", "Delete it") from error
    return torch.cat(batches)[:count]
