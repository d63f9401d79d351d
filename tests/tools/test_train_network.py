"""The training tools' network, against transformers and against itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from host.checkpoint import load_checkpoint
from host.errors import InputError
from tools.train_network import (
    Llama,
    Shape,
    make_network,
    sample_rows,
    save_huggingface,
)
from tools.train_vocabulary import (
    open_tokenizer,
    read_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

BUNDLED = Path(__file__).resolve().parents[2] / "weights" / "storyteller-1m"
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


@pytest.mark.parametrize("change", [{}, {"tied": False}, {"head_dim": 8}])
def test_saved_model_is_read_back(
    change: dict[str, int], text_folder: Path, tmp_path: Path
) -> None:
    shape = Shape(**{**vars(SHAPE), "vocabulary": 320, **change})
    network = Llama(shape)
    network.initialize(1)
    save_huggingface(network, tmp_path, torch.float32)
    stories = [(text_folder / "stories.txt").read_text(encoding="utf-8")]
    save_tokenizer(train_tokenizer(stories, 320), tmp_path, 16)
    again = make_network(load_checkpoint(tmp_path))
    assert again.shape == network.shape
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    other = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(again(ids), other(ids).logits, atol=2e-5, rtol=1e-4)


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


@pytest.mark.parametrize(
    "change", [{"hidden": 25}, {"kv_heads": 4}, {"heads": 8, "kv_heads": 8}, {"head_dim": 3}]
)
def test_impossible_shape_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Shape(**{**vars(SHAPE), "head_dim": 0, **change})


@pytest.mark.shared
def test_stories260k_tells_its_known_story(shared_dir: Path) -> None:
    folder = shared_dir / "models" / "stories260K"
    network = make_network(load_checkpoint(folder / "stories260K.bin"))
    tokenizer = open_tokenizer(read_tokenizer(folder / "tok512.bin"), "tok512.bin")
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
    model = read_tokenizer(source)
    assert model == (BUNDLED / "tokenizer.model").read_bytes()
    tokenizer = open_tokenizer(model, "tok512.bin")
    pieces = {
        tokenizer.id_to_piece(i).replace("\u2581", " "): (i, tokenizer.get_score(i))
        for i in range(259, tokenizer.vocab_size())
    }
    save_tokenizer(model, tmp_path, 512)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    text = (shared_dir / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")
    paragraphs = [*text.split("\n\n")[:40], "tabs\tand \u00e9\u4e2d\U0001f600", "  two  spaces "]
    for paragraph in paragraphs:
        ids = tokenizer.encode(paragraph)
        assert ids == _greedy_merges(pieces, paragraph)
        if not paragraph.startswith(" "):  # transformers then leaves the dummy prefix out
            assert saved.encode(paragraph) == [1, *ids]
        assert tokenizer.decode(ids) == paragraph
