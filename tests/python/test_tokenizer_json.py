"""tokenizer.json: read as the tokenizers library reads it, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizer_tools import random_texts, small_spec

from host.errors import InputError
from host.tokenizer import PieceType, Tokenizer, TokenizerSpec, load_tokenizer
from host.tokenizer.spec import SPACE

Document = dict[str, Any]
TEXTS = ["\u2581", "a", "b", "ab", "ba", "\u2581a", "\u2581ab", "abab", "c"]


def document_of(spec: TokenizerSpec) -> Document:
    """The tokenizer.json that older releases of transformers make of a SentencePiece model."""
    texts = [piece.text.decode() for piece in spec.pieces]
    normal = {
        text: piece.rank
        for text, piece in zip(texts, spec.pieces, strict=True)
        if piece.type == PieceType.NORMAL
    }
    merges = [
        (rank, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    merges.sort(key=lambda merge: merge[0])
    special = [i for i, p in enumerate(spec.pieces) if p.type in (2, 3)]
    normalizers = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": index,
                "content": texts[index],
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for index in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": [f"{left} {right}" for _, left, right in merges],
        },
    }


@pytest.fixture
def spec() -> TokenizerSpec:
    return small_spec(TEXTS, byte_fallback=True)


@pytest.fixture
def document(spec: TokenizerSpec) -> Document:
    return document_of(spec)


Load = Callable[[Any], TokenizerSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(document: Any) -> TokenizerSpec:
        path = tmp_path / "tokenizer.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return load_tokenizer(path)

    return load


def check_against_library(spec: TokenizerSpec, path: Path, texts: list[str]) -> None:
    twin, library = Tokenizer(spec), tokenizers.Tokenizer.from_file(str(path))
    for text in texts:
        ids = library.encode(text, add_special_tokens=False).ids
        assert twin.encode(text) == ids, repr(text)
        assert twin.decode(ids) == library.decode(ids), repr(text)


def plain_texts(seed: int, count: int) -> list[str]:
    """Texts without what the library takes for special tokens, or the start of a text."""
    special = ("<s>", "</s>", "<unk>")
    return [
        text
        for text in random_texts(seed, count)
        if text[0] not in (" ", SPACE) and not any(token in text for token in special)
    ]


# --- The library is the oracle --------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(surrogate_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The surrogate's tokenizer as this release of transformers saves it."""
    from transformers import LlamaTokenizerFast

    folder = tmp_path_factory.mktemp("converted")
    LlamaTokenizerFast.from_pretrained(str(surrogate_dir)).save_pretrained(str(folder))
    assert not (folder / "tokenizer.model").exists()
    return folder


@pytest.mark.shared
def test_what_transformers_saves(converted: Path, valid_text: str) -> None:
    spec = load_tokenizer(converted)
    assert (spec.vocab_size, spec.unk, spec.bos, spec.eos) == (32_000, 0, 1, 2)
    assert (spec.add_bos, spec.add_prefix_space) == (True, True)
    lines = [line.strip() for line in valid_text.splitlines()]
    texts = lines + plain_texts(11, 4_000)
    assert len(texts) > 3_000
    check_against_library(spec, converted / "tokenizer.json", texts)


@pytest.mark.shared
def test_the_older_form_is_as_the_library_has_it(
    surrogate_dir: Path, load: Load, tmp_path: Path
) -> None:
    loaded = load(document_of(load_tokenizer(surrogate_dir)))
    check_against_library(loaded, tmp_path / "tokenizer.json", plain_texts(12, 2_000))


@pytest.mark.shared
def test_scores_that_transformers_sorted_come_back(surrogate_dir: Path, load: Load) -> None:
    """Its releases of 2024 mix the merges of pieces with equal scores: Llama's runs of spaces."""
    from transformers.convert_slow_tokenizer import generate_merges

    spec = load_tokenizer(surrogate_dir)
    document = document_of(spec)
    scores = {p.text.decode(): -p.rank for p in spec.pieces if p.type == PieceType.NORMAL}
    vocab = {text: document["model"]["vocab"][text] for text in scores}
    document["model"]["merges"] = generate_merges(vocab, scores)
    twin, wanted = Tokenizer(load(document)), Tokenizer(spec)
    texts = random_texts(13, 4_000) + [f"a{' ' * n}b" for n in range(1, 60)]
    for text in texts:
        assert twin.encode(text) == wanted.encode(text), repr(text)


# --- The forms that mean the same -----------------------------------------------------------------


def test_a_small_file(spec: TokenizerSpec, document: Document, load: Load) -> None:
    loaded = load(document)
    assert (loaded.bos, loaded.eos, loaded.unk) == (1, 2, 0)
    assert (loaded.add_bos, loaded.add_prefix_space, loaded.byte_fallback) == (True, True, True)
    assert Tokenizer(loaded).encode("ab abab c\u65e5") == Tokenizer(spec).encode("ab abab c\u65e5")


def test_merges_as_pairs(document: Document, load: Load) -> None:
    wanted = load(document)
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    assert load(document) == wanted


def test_metaspace_in_place_of_normalizers(document: Document, load: Load) -> None:
    wanted = load(document)
    document["normalizer"] = None
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    for scheme, prefix in (("always", True), ("first", True), ("never", False)):
        document["pre_tokenizer"] = {**metaspace, "prepend_scheme": scheme}
        loaded = load(document)
        assert loaded.add_prefix_space is prefix
        assert loaded.pieces == wanted.pieces
    document["pre_tokenizer"] = {**metaspace, "prepend_scheme": "always", "split": True}
    assert load(document) == wanted


def test_no_prefix_space(document: Document, load: Load) -> None:
    document["normalizer"] = document["normalizer"]["normalizers"][1]
    assert load(document).add_prefix_space is False


def test_who_says_whether_bos_is_added(document: Document, load: Load, tmp_path: Path) -> None:
    assert load(document).add_bos is True
    processor = document.pop("post_processor")
    assert load(document).add_bos is False
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"add_bos_token": True}))
    assert load(document).add_bos is True
    config.write_text(json.dumps({"add_bos_token": False, "bos_token": {"content": "<s>"}}))
    assert load({**document, "post_processor": processor}).add_bos is False


def test_special_tokens_beyond_the_vocabulary(document: Document, load: Load) -> None:
    count = len(document["model"]["vocab"])
    pad = {**document["added_tokens"][1], "id": count, "content": "<pad>"}
    document["added_tokens"].append(pad)
    loaded = load(document)
    assert loaded.vocab_size == count + 1
    assert loaded.pieces[count].type == PieceType.CONTROL


# --- What is refused, by name ---------------------------------------------------------------------

Change = Callable[[Document], object]


def _model(**fields: Any) -> Change:
    return lambda document: document["model"].update(fields)


def _root(**fields: Any) -> Change:
    return lambda document: document.update(fields)


def _merges(change: Callable[[list[str]], object]) -> Change:
    return lambda document: change(document["model"]["merges"])


REFUSED: list[tuple[str, Change]] = [
    ("model type Unigram", _model(type="Unigram")),
    ("model type WordPiece", _model(type="WordPiece")),
    ("BPE without byte_fallback", _model(byte_fallback=False)),
    ("dropout", _model(dropout=0.1)),
    ("ignore_merges", _model(ignore_merges=True)),
    ("continuing_subword_prefix", _model(continuing_subword_prefix="##")),
    ("end_of_word_suffix", _model(end_of_word_suffix="</w>")),
    ("byte-level BPE", _root(pre_tokenizer={"type": "ByteLevel"})),
    (
        "byte-level BPE",
        _root(
            normalizer=None,
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}],
            },
        ),
    ),
    ("pre_tokenizer Whitespace", _root(pre_tokenizer={"type": "Whitespace"})),
    ("normalizer NFKC", _root(normalizer={"type": "NFKC"})),
    ("normalizer Lowercase", _root(normalizer={"type": "Lowercase"})),
    ("no Metaspace", _root(normalizer=None)),
    ("decoder ByteLevel", _root(decoder={"type": "ByteLevel"})),
    ("added tokens that are matched", lambda d: d["added_tokens"][1].update(special=False)),
    ("no piece <0x41>", lambda d: d["model"]["vocab"].pop("<0x41>")),
    ("ids have gaps", lambda d: d["model"]["vocab"].update(c=999)),
    ("the id -1", lambda d: d["model"]["vocab"].update(c=-1)),
    ("the id True", lambda d: d["model"]["vocab"].update(c=True)),
    ("the id 1000000", lambda d: d["model"]["vocab"].update(c=10**6)),
    ("model.vocab is not a JSON object", _model(vocab=[])),
    ("model is not a JSON object", _root(model=None)),
    ("model.merges is not a JSON list", _model(merges=None)),
    ("merge 0 is not a pair", _merges(lambda m: m.insert(0, "abc"))),
    ("merge 0 is not a pair", _merges(lambda m: m.insert(0, ""))),
    ("merge 0 is of pieces that are not", _merges(lambda m: m.insert(0, "a zz"))),
    ("not SentencePiece's at the piece 'ab'", _merges(lambda m: m.remove("a b"))),
    ("not SentencePiece's at the piece '\\u2581ab'", _merges(lambda m: m.remove(f"{SPACE} ab"))),
    (
        "not SentencePiece's at the piece 'abab'",
        _merges(lambda m: m.append(m.pop(m.index(f"{SPACE} ab")))),
    ),
]


@pytest.mark.parametrize(("message", "change"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_name(
    document: Document, load: Load, message: str, change: Change
) -> None:
    load(copy.deepcopy(document))
    change(document)
    with pytest.raises(InputError) as caught:
        load(document)
    assert message in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"model": 1}'])
def test_what_is_no_document_is_refused(load: Load, text: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(text)
