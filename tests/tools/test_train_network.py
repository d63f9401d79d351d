"""The training tools' network, against transformers and against itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tools.train_network import (
    Llama,
    Shape,
    TrainingError,
    load_huggingface,
    load_llama2c,
    sample_rows,
    save_huggingface,
)
from tools.train_vocabulary import convert_llama2c_tokenizer, load_tokenizer, save_tokenizer

SHAPE = Shape(vocabulary=40, hidden=24, layers=2, heads=6, kv_heads=2, feed_forward=20, context=16)


@pytest.fixture
def network() -> Llama:
    network = Llama(SHAPE)
    network.initialize(1)
    return network.eval()


def test_saved_model_computes_the_same_in_transformers(network: Llama, tmp_path: Path) -> None:
    save_huggingface(network, tmp_path, torch.float32)
    other = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(ids), other(ids).logits, atol=2e-5, rtol=1e-4)


def test_saved_model_is_read_back(network: Llama, tmp_path: Path) -> None:
    save_huggingface(network, tmp_path, torch.float32)
    again = load_huggingface(tmp_path)
    assert again.shape == network.shape
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_cached_sampling_follows_the_whole_forward_pass(network: Llama) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = sample_rows(network, 3, 16, first=1, temperature=1e-4, generator=generator)
    with torch.inference_mode():
        best = network(rows).argmax(-1)
    assert torch.equal(rows[:, 1:], best[:, :-1])


def test_sampling_follows_the_distribution(network: Llama) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = sample_rows(network, 40_000, 2, first=1, temperature=0.7, generator=generator)
    with torch.inference_mode():
        wanted = torch.softmax(network(torch.tensor([[1]]))[0, 0] / 0.7, -1)
    drawn = torch.bincount(rows[:, 1], minlength=40) / 40_000
    assert float((drawn - wanted).abs().max()) < 0.006


@pytest.mark.parametrize("cut", [0, 27, 28, 5000, -1])
def test_llama2c_checkpoint_of_wrong_length_is_refused(llama2c_checkpoint: Path, cut: int) -> None:
    llama2c_checkpoint.write_bytes(llama2c_checkpoint.read_bytes()[:cut])
    with pytest.raises(TrainingError, match=r"too short|has not the length"):
        load_llama2c(llama2c_checkpoint)


@pytest.mark.parametrize(
    "change", [{"hidden": 25}, {"kv_heads": 4}, {"layers": 0}, {"heads": 8, "kv_heads": 8}]
)
def test_impossible_shape_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(TrainingError):
        Shape(**{**vars(SHAPE), **change})


@pytest.mark.shared
def test_stories260k_tells_its_known_story(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "models" / "stories260K"
    network = load_llama2c(folder / "stories260K.bin").eval()
    convert_llama2c_tokenizer(folder / "tok512.bin", tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    ids = [1, *tokenizer.encode("Once upon a time")]
    with torch.inference_mode():
        for _ in range(40):
            ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    text = tokenizer.decode(ids)
    known = "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    assert text.startswith(known)


def _greedy_merges(pieces: dict[str, tuple[int, float]], text: str) -> list[int]:
    """llama2.c's encoding: characters, then the best-scored neighbours merged until none is."""
    symbols = [" ", *text]
    while True:
        candidates = [
            (-pieces[left + right][1], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in pieces
        ]
        if not candidates:
            break
        place = min(candidates)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids: list[int] = []
    for symbol in symbols:
        ids += [pieces[symbol][0]] if symbol in pieces else [3 + b for b in symbol.encode()]
    return ids


@pytest.mark.shared
def test_converted_tokenizer_encodes_as_llama2c_and_transformers(
    shared_dir: Path, tmp_path: Path
) -> None:
    source = shared_dir / "models" / "stories260K" / "tok512.bin"
    convert_llama2c_tokenizer(source, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    pieces = {
        tokenizer.id_to_piece(i).replace("\u2581", " "): (i, tokenizer.get_score(i))
        for i in range(259, tokenizer.vocab_size())
    }
    save_tokenizer(tmp_path / "tokenizer.model", tmp_path / "saved", 512)
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = (shared_dir / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")
    paragraphs = [*text.split("\n\n")[:40], "tabs\tand \u00e9\u4e2d\U0001f600", "  two  spaces "]
    for paragraph in paragraphs:
        ids = tokenizer.encode(paragraph)
        assert ids == _greedy_merges(pieces, paragraph)
        if not paragraph.startswith(" "):  # transformers then leaves the dummy prefix out
            assert saved.encode(paragraph) == [1, *ids]
        assert tokenizer.decode(ids) == paragraph
