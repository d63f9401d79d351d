"""The integer engine against the float model: divergence, agreement, perplexity."""

from host.evaluate.float_twin import FloatModel
from host.evaluate.metrics import Scores
from host.evaluate.report import EvaluationReport, LikelyToken, PromptComparison, evaluate

__all__ = [
    "EvaluationReport",
    "FloatModel",
    "LikelyToken",
    "PromptComparison",
    "Scores",
    "evaluate",
]
