"""`host evaluate`: the integer engine beside the float model, on a text and on five prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from host.checkpoint import Checkpoint
from host.errors import InputError
from host.evaluate.float_twin import FloatModel
from host.evaluate.metrics import (
    Comparison,
    FloatPredictor,
    IntegerPredictor,
    Predictor,
    Scores,
    cut_windows,
)
from host.package import Package
from host.reference.model import ReferenceModel
from host.tokenizer import PieceType, Tokenizer, TokenizerSpec
from host.tokenizer.spec import SPACE

PROMPTS: Final = (
    "Hello, how are you?",
    "The quick brown fox",
    "In a hole in the ground",
    "Once upon a time",
    "The future of AI is",
)
WINDOW: Final = 512
"""The most tokens of a window of the text, where the context is no shorter."""

_TOP: Final = 5


@dataclass(frozen=True)
class LikelyToken:
    """A token that may come next.

    Attributes:
        id: Its id.
        text: What it decodes to.
        probability: 0 to 1, at temperature 1.
    """

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class PromptComparison:
    """What comes next after a prompt, the most likely first.

    Attributes:
        prompt: The text.
        float_model: By the float model.
        engine: By the integer engine.
    """

    prompt: str
    float_model: tuple[LikelyToken, ...]
    engine: tuple[LikelyToken, ...]

    @property
    def agrees(self) -> bool:
        """Whether both hold the same token the most likely."""
        return self.float_model[0].id == self.engine[0].id


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate` found.

    Attributes:
        model: The package's name.
        fingerprint: The package's, hex.
        positions: Positions of the text that were compared.
        window: Tokens of a window; each begins with BOS where the model was trained so.
        text_bytes: Bytes of the text predicted.
        float_model: The float model itself.
        rounded: Float arithmetic on the package's weights, against the float model.
        engine: The integer engine, against the float model.
        prompts: What comes next after five prompts.
    """

    model: str
    fingerprint: str
    positions: int
    window: int
    text_bytes: int
    float_model: Scores
    rounded: Scores
    engine: Scores
    prompts: tuple[PromptComparison, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as what `json.dumps` takes."""
        return {
            **asdict(self),
            "prompts": [{**asdict(p), "agrees": p.agrees} for p in self.prompts],
        }


def evaluate(
    package_dir: str | Path,
    checkpoint: Checkpoint,
    text: str,
    positions: int = 4000,
    progress: Callable[[int], None] = lambda _: None,
) -> EvaluationReport:
    """Measures what a package's integers cost against the checkpoint that it was made from.

    Args:
        package_dir: The package's folder.
        checkpoint: The float model.
        text: What to predict.
        positions: Tokens of the text to predict; all where there are fewer.
        progress: Called with the number of positions done since the last call.

    Raises:
        InputError: The package is damaged, is of another model, or the text has no tokens.
    """
    package = Package.open(package_dir)
    facts = package.model
    _check_same_model(package, checkpoint)
    spec = TokenizerSpec.from_bin(package.read_file("tokenizer.bin"))
    tokenizer = Tokenizer(spec)
    bos = facts.bos if facts.add_bos and facts.bos >= 0 else None
    window = min(WINDOW, facts.context)
    tokens = tokenizer.encode_start(text, positions + 1)
    windows = cut_windows(tokens, bos, positions, window)
    if not windows:
        raise InputError("The text is too short to predict anything", "Give a longer one")

    base = FloatPredictor(FloatModel.from_checkpoint(checkpoint))
    rounded = FloatPredictor(FloatModel.from_package(package))
    engine = IntegerPredictor(ReferenceModel(package))
    comparison = Comparison(base, {"rounded": rounded, "engine": engine})
    for part in windows:
        comparison.add(part)
        progress(len(part.inputs))
    text_bytes = _bytes_of(
        spec, (int(i) for part in windows for i in part.targets), bos is not None
    )
    return EvaluationReport(
        model=facts.name,
        fingerprint=facts.fingerprint.hex(),
        positions=comparison.positions,
        window=window,
        text_bytes=text_bytes,
        float_model=comparison.base_scores(text_bytes),
        rounded=comparison.scores("rounded", text_bytes),
        engine=comparison.scores("engine", text_bytes),
        prompts=tuple(
            PromptComparison(
                prompt,
                _likely(base, tokenizer, bos, prompt, facts.context),
                _likely(engine, tokenizer, bos, prompt, facts.context),
            )
            for prompt in PROMPTS
        ),
    )


def _check_same_model(package: Package, checkpoint: Checkpoint) -> None:
    ours, theirs = asdict(package.config), asdict(checkpoint.config)
    if any(ours[key] != theirs[key] for key in theirs if key != "name"):
        raise InputError(
            f"{package.path} is of another model than {checkpoint.source}",
            "Name the checkpoint that the package was made from",
        )


def _bytes_of(spec: TokenizerSpec, tokens: Iterable[int], at_start: bool) -> int:
    """Returns the UTF-8 bytes that tokens stand for.

    Args:
        spec: The tokenizer.
        tokens: The tokens.
        at_start: Whether the first is the text's, with the space that the tokenizer puts in front.
    """
    total = 0
    space = SPACE.encode()
    for index in tokens:
        piece = spec.pieces[index]
        if piece.type is PieceType.BYTE:
            total += 1
        elif piece.type is PieceType.NORMAL:
            total += len(piece.text.replace(space, b" "))
    return max(1, total - (at_start and spec.add_prefix_space))


def _likely(
    predictor: Predictor, tokenizer: Tokenizer, bos: int | None, prompt: str, context: int
) -> tuple[LikelyToken, ...]:
    front: Sequence[int] = () if bos is None else (bos,)
    ids = np.array([*front, *tokenizer.encode(prompt)][:context], dtype=np.int64)
    *_, last = predictor.predict(ids)
    logits = last[-1].astype(np.float64)
    p = np.exp(logits - np.max(logits))
    p /= np.sum(p)
    best = np.argsort(-p, kind="stable")[:_TOP]
    return tuple(
        LikelyToken(int(i), tokenizer.decode([int(i)], at_start=False), float(p[i])) for i in best
    )
