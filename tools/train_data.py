"""Texts for training: stories, what is held out of them, and rows of token ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.train_network import Llama, TrainingError, sample_rows
from tools.train_vocabulary import BOS

_SAMPLING_BATCH = 128


def find_texts(paths: list[Path]) -> list[Path]:
    """Each path is a text file, or a folder whose `.txt` files are meant."""
    texts: list[Path] = []
    for path in paths:
        texts.extend(sorted(path.glob("**/*.txt")) if path.is_dir() else [path])
    if not texts:
        raise TrainingError(f"no .txt file in {', '.join(map(str, paths))}: name another folder.")
    for text in texts:
        if not text.is_file():
            raise TrainingError(f"{text} does not exist: correct `texts` in the configuration.")
    return texts


def read_stories(texts: list[Path], separator: str) -> list[str]:
    """The stripped, non-empty pieces between matches of the regular expression `separator`."""
    stories: list[str] = []
    for text in texts:
        pieces = re.split(separator, text.read_text(encoding="utf-8"))
        stories.extend(piece.strip() for piece in pieces if piece.strip())
    return stories


def _paragraphs(text: str) -> set[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) > 20}


def without_overlap(stories: list[str], excluded: list[Path]) -> list[str]:
    """Drops each story that shares a paragraph of over 20 characters with an excluded text."""
    known: set[str] = set()
    for path in excluded:
        known |= _paragraphs(path.read_text(encoding="utf-8"))
    return [story for story in stories if not _paragraphs(story) & known]


@dataclass(frozen=True)
class Corpus:
    """Token ids of the texts, each story led by the bos token: int64, 1-D."""

    train: Tensor
    held_out: Tensor


def make_corpus(
    stories: list[str], tokenizer: sentencepiece.SentencePieceProcessor, held_out_every: int
) -> Corpus:
    """Encodes the stories; every `held_out_every`-th is kept out of training."""

    def encode(chosen: list[str]) -> Tensor:
        ids = [np.array([BOS, *tokenizer.encode(story)], np.int64) for story in chosen]
        return torch.from_numpy(np.concatenate(ids))

    held_out = stories[held_out_every - 1 :: held_out_every]
    train = [s for index, s in enumerate(stories) if (index + 1) % held_out_every]
    if not held_out or not train:
        raise TrainingError(
            f"{len(stories)} stories are too few to hold out one in {held_out_every}: add text or "
            "lower `held_out_every`."
        )
    return Corpus(encode(train), encode(held_out))


def random_rows(stream: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """`rows` windows of `length` ids at random places of the stream, (rows, length)."""
    if len(stream) < length:
        raise TrainingError(
            f"the text has {len(stream)} tokens, fewer than a row of {length}: add text or lower "
            "`row_length`."
        )
    starts = torch.randint(0, len(stream) - length + 1, (rows,), generator=generator)
    return stream[starts[:, None] + torch.arange(length)]


def teacher_rows(
    teacher: Llama, count: int, length: int, *, temperature: float, seed: int, cache: Path
) -> Tensor:
    """Samples `count` rows from the teacher, int16 (count, length).

    Batches are kept in `cache`, so that an interrupted run does not sample twice; batch i is
    drawn from seed + i.
    """
    cache.mkdir(parents=True, exist_ok=True)
    batches: list[Tensor] = []
    for index in range(-(-count // _SAMPLING_BATCH)):
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
            temporary = path.with_suffix(".part")
            save_file({"rows": rows.to(torch.int16)}, temporary)
            temporary.replace(path)
        batch = load_file(path)["rows"]
        if batch.shape != (_SAMPLING_BATCH, length):
            raise TrainingError(f"{path} holds rows of another run: delete {cache}.")
        batches.append(batch)
    return torch.cat(batches)[:count]
