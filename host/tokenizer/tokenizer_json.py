"""Reads a Hugging Face `tokenizer.json` that was made from a SentencePiece BPE model.

Its BPE applies a list of merges, SentencePiece merges whatever neighbours make up a piece, ordered
by the piece. The one follows from the other where each way to make up a piece is in the list and
those of one piece follow each other, or are mixed with those of pieces that have the same score, as
transformers writes them: longer parts first. This is checked, and any other file is refused. The
two still differ where ways to make up one piece overlap, as in long runs of spaces; then
SentencePiece is followed.
"""

from __future__ import annotations

from collections.abc import Iterator

from host.errors import InputError
from host.strict_json import parse_fields, plain, shown
from host.tokenizer.spec import (
    MAX_VOCAB,
    NO_ID,
    SPACE,
    Piece,
    PieceType,
    TokenizerSpec,
    byte_piece,
    byte_value,
    check_size,
    dense_ranks,
    splits,
)

_Object = dict[str, object]
_DECODERS = ("ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")
_UNMERGED = float("inf")


def read_tokenizer_json(
    data: bytes,
    name: str,
    add_bos: bool | None = None,
    bos_token: str = "<s>",  # noqa: S107
    eos_token: str = "</s>",  # noqa: S107
    unk_token: str = "<unk>",  # noqa: S107
) -> TokenizerSpec:
    """Reads a BPE tokenizer of SentencePiece's kind.

    A text that starts with a space keeps it behind the prefix space, as SentencePiece has it, also
    where the file asks for Metaspace, which would not add one there.

    Args:
        data: The whole file.
        name: What to call it in an error.
        add_bos: Whether texts begin with BOS; None to go by the file's post-processor.
        bos_token: Text of the BOS piece.
        eos_token: Text of the EOS piece.
        unk_token: Text of the unknown piece, where the file does not say.

    Raises:
        InputError: The file is damaged or of another kind.
    """
    reader = _Reader(name)
    root = parse_fields(data, name, "Get the file again")
    model = reader.as_object(root.get("model"), "model")
    prefix = reader.prefix_space(root)
    reader.check_model(root, model)

    vocab = reader.vocab(model)
    added = reader.added_tokens(root, vocab)
    unk = model.get("unk_token") or unk_token
    texts = dict(sorted((index, text) for text, index in {**vocab, **added}.items()))
    if list(texts) != list(range(len(texts))):
        raise reader.damaged("its ids have gaps or appear twice")

    kinds: list[PieceType] = []
    for text in texts.values():
        if text == unk:
            kinds.append(PieceType.UNKNOWN)
        elif text in added:
            kinds.append(PieceType.CONTROL)
        elif byte_value(text.encode("utf-8")) >= 0:
            kinds.append(PieceType.BYTE)
        else:
            kinds.append(PieceType.NORMAL)
    normal = [
        text for text, kind in zip(texts.values(), kinds, strict=True) if kind == PieceType.NORMAL
    ]
    for index, text in texts.items():
        check_size(index, len(text.encode("utf-8")))
    ranks = reader.ranks(model, normal)

    def control(text: str) -> int:
        return added[text] if text in added and text != unk else NO_ID

    bos = control(bos_token)
    if add_bos is None:
        add_bos = bos != NO_ID and bos_token in reader.tokens_in_front(root)
    pieces = tuple(
        Piece(text.encode("utf-8"), kind, ranks.get(text, 0))
        for text, kind in zip(texts.values(), kinds, strict=True)
    )
    return TokenizerSpec(
        pieces,
        unk=kinds.index(PieceType.UNKNOWN) if PieceType.UNKNOWN in kinds else NO_ID,
        bos=bos,
        eos=control(eos_token),
        add_prefix_space=prefix,
        byte_fallback=True,
        add_bos=add_bos and bos != NO_ID,
    )


def _named(value: object) -> str:
    return shown(value).strip('"')


class _Reader:
    """The parts of one file, each checked as it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self.name} is not a whole tokenizer: {reason}", "Get the file again")

    def unsupported(self, what: str) -> InputError:
        return InputError(
            f"{self.name} has {what}, which is not supported",
            "Use a model with a SentencePiece-BPE tokenizer, such as Llama's",
        )

    def as_object(self, value: object, what: str) -> _Object:
        if not isinstance(value, dict):
            raise self.damaged(f"{what} is not a JSON object")
        return value

    def as_list(self, value: object, what: str) -> list[object]:
        if not isinstance(value, list):
            raise self.damaged(f"{what} is not a JSON list")
        return value

    def steps(self, value: object, what: str, parts: str) -> Iterator[_Object]:
        """The members of a Sequence, or the thing itself; nothing of null."""
        if value is None:
            return
        step = self.as_object(value, what)
        if step.get("type") != "Sequence":
            yield step
            return
        for part in self.as_list(step.get(parts), what):
            member = self.as_object(part, what)
            if member.get("type") == "Sequence":
                raise self.unsupported(f"a Sequence in a Sequence as {what}")
            yield member

    def check_model(self, root: _Object, model: _Object) -> None:
        kind = model.get("type", "BPE")
        if kind != "BPE":
            raise self.unsupported(f"model type {_named(kind)}")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
            if model.get(key):
                raise self.unsupported(key)
        if model.get("byte_fallback") is not True:
            raise self.unsupported("BPE without byte_fallback")
        for step in self.steps(root.get("decoder"), "decoder", "decoders"):
            if step.get("type") not in _DECODERS:
                raise self.unsupported(f"decoder {_named(step.get('type'))}")

    def prefix_space(self, root: _Object) -> bool:
        """Checks how text becomes pieces' characters; returns whether a space goes in front."""
        prefix = replaced = False
        for step in self.steps(root.get("normalizer"), "normalizer", "normalizers"):
            kind = step.get("type")
            spaces = (SPACE,) if replaced else (SPACE, " ")
            if kind == "Prepend" and step.get("prepend") in spaces and not prefix:
                prefix = True
            elif (
                kind == "Replace"
                and step.get("pattern") == {"String": " "}
                and step.get("content") == SPACE
            ):
                replaced = True
            else:
                raise self.unsupported(f"normalizer {_named(kind)}")
        for step in self.steps(root.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers"):
            kind = step.get("type")
            if kind == "ByteLevel":
                raise self.unsupported("byte-level BPE")
            if kind != "Metaspace" or step.get("replacement") != SPACE or replaced:
                raise self.unsupported(f"pre_tokenizer {_named(kind)}")
            replaced = True
            scheme = step.get("prepend_scheme")
            if scheme is None:
                scheme = "always" if step.get("add_prefix_space", True) else "never"
            if scheme not in ("always", "first", "never"):
                raise self.unsupported(f"prepend_scheme {_named(scheme)}")
            prefix = prefix or scheme != "never"
            if step.get("split", True):
                self._check_split(root)
        if not replaced:
            raise self.unsupported("no Metaspace, so that it is not of SentencePiece's kind")
        return prefix

    def _check_split(self, root: _Object) -> None:
        """Splitting before each space changes nothing if no piece has one inside."""
        model = self.as_object(root.get("model"), "model")
        contents = [self.as_object(t, "a token").get("content") for t in self._added(root)]
        special = {content for content in contents if isinstance(content, str)}
        for text in self.vocab(model):
            if SPACE in text[1:] and text not in special:
                raise self.unsupported("Metaspace with split and pieces that go across it")

    def vocab(self, model: _Object) -> dict[str, int]:
        vocab: dict[str, int] = {}
        for text, index in self.as_object(model.get("vocab"), "model.vocab").items():
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MAX_VOCAB:
                raise self.damaged(f"a piece has the id {str(index)[:20]}")
            vocab[text] = index
        missing = [value for value in range(256) if byte_piece(value).decode() not in vocab]
        if missing:
            raise self.unsupported(f"no piece {byte_piece(missing[0]).decode()}")
        return vocab

    def _added(self, root: _Object) -> list[object]:
        return self.as_list(root.get("added_tokens") or [], "added_tokens")

    def added_tokens(self, root: _Object, vocab: dict[str, int]) -> dict[str, int]:
        """The special tokens, all of which are control pieces but the unknown one."""
        added: dict[str, int] = {}
        for entry in self._added(root):
            token = self.as_object(entry, "an added token")
            text, index = token.get("content"), token.get("id")
            if not isinstance(text, str) or not text or not isinstance(index, int):
                raise self.damaged("an added token has no content or no id")
            if not 0 <= index < MAX_VOCAB or vocab.get(text, index) != index:
                raise self.damaged(f"an added token has the id {str(index)[:20]}")
            if token.get("special") is not True:
                raise self.unsupported("added tokens that are matched in text")
            added[text] = index
        return added

    def ranks(self, model: _Object, normal: list[str]) -> dict[str, int]:
        """Recovers each piece's rank from the merges, if they say what SentencePiece does."""
        keys = dict.fromkeys(normal, _UNMERGED)
        merges: list[tuple[str, str]] = []
        places: dict[str, list[int]] = {}
        for place, entry in enumerate(self.as_list(model.get("merges"), "model.merges")):
            left, right = self._merge(entry, place)
            if left + right not in keys or left not in keys or right not in keys:
                raise self.damaged(f"merge {place} is of pieces that are not in the vocabulary")
            merges.append((left, right))
            places.setdefault(left + right, []).append(place)
        for text in normal:
            if {merges[place] for place in places.get(text, [])} != set(splits(text, keys)):
                raise self._not_sentencepiece(text)

        sorted_to = self._sorted_to(merges)
        start = end = -1
        for text, own in places.items():  # by their first merge
            if own[0] > end:
                start = own[0]
            elif sorted_to[start] < own[-1]:
                raise self._not_sentencepiece(text)
            end = max(end, own[-1])
            keys[text] = start
        return dense_ranks(keys)

    def _sorted_to(self, merges: list[tuple[str, str]]) -> list[int]:
        """For each merge the last one up to which longer parts come first.

        So transformers mixes the merges of pieces that have equal scores.
        """
        lengths = [(len(left), len(right)) for left, right in merges]
        ends = list(range(len(merges)))
        for place in range(len(merges) - 2, -1, -1):
            if lengths[place] >= lengths[place + 1]:
                ends[place] = ends[place + 1]
        return ends

    def _merge(self, entry: object, place: int) -> tuple[str, str]:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if isinstance(parts, list) and len(parts) == 2:
            left, right = parts
            if isinstance(left, str) and isinstance(right, str) and left and right:
                return left, right
        raise self.damaged(f"merge {place} is not a pair")

    def _not_sentencepiece(self, text: str) -> InputError:
        return self.unsupported(f"merges that are not SentencePiece's at the piece '{plain(text)}'")

    def tokens_in_front(self, root: _Object) -> list[object]:
        """The special tokens that the post-processor puts before a text."""
        front: list[object] = []
        for step in self.steps(root.get("post_processor"), "post_processor", "processors"):
            if step.get("type") != "TemplateProcessing":
                continue
            for item in self.as_list(step.get("single"), "post_processor"):
                part = self.as_object(item, "post_processor")
                if "SpecialToken" not in part:
                    break
                front.append(self.as_object(part["SpecialToken"], "post_processor").get("id"))
        return front
