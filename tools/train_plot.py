"""Draws the held-out loss of a training run from the training.json beside a model.

python -m tools.train_plot weights/storyteller-1m/training.json weights/loss.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import typer
from matplotlib.figure import Figure


def draw(run: dict[str, Any]) -> Figure:
    """Held-out nats a token over millions of tokens seen, and the teacher's as a line."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    tokens = [entry["tokens"] / 1e6 for entry in run["curve"]]
    held_out = [entry["held_out"] for entry in run["curve"]]
    axes.plot(tokens, held_out, color="#1f6fb4", label="this model")
    if run["teacher_held_out"] is not None:
        axes.axhline(run["teacher_held_out"], color="#888888", linestyle="--", label="the teacher")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_ylim(top=min(max(held_out), 2.4))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main(training: Path, picture: Path) -> None:
    """Draw PICTURE (its suffix says the format) from TRAINING, a training.json."""
    try:
        run = json.loads(training.read_text(encoding="utf-8"))
        mpl.rcParams.update({"svg.hashsalt": "loss", "svg.fonttype": "none"})
        draw(run).savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
    except (OSError, ValueError, KeyError) as error:
        print(f"train_plot: {training} cannot be drawn ({error}): check it.", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
