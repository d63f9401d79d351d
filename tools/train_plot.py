"""Draws the held-out loss of a training run from the training.json beside a model.

python -m tools.train_plot weights/storyteller-1m/training.json weights/loss.svg
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import typer
from matplotlib.figure import Figure

from host.atomic import write_file
from host.errors import InputError
from host.strict_json import JsonObject, read_object
from tools.train_command import told

_MOST = 1e18


def draw(run: JsonObject) -> Figure:
    """Held-out nats a token over millions of tokens seen, and the teacher's as a line."""
    curve = run.children("curve")
    if not curve:
        raise run.wrong("its curve is empty")
    tokens = [entry.number("tokens", 0, _MOST) / 1e6 for entry in curve]
    held_out = [entry.number("held_out", 0, _MOST) for entry in curve]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, held_out, color="#1f6fb4", label="this model")
    if "teacher_held_out" in run:
        teacher = run.number("teacher_held_out", 0, _MOST)
        axes.axhline(teacher, color="#888888", linestyle="--", label="the teacher")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel("held-out loss, nats a token")
    if min(held_out) < 2.4:  # where the first steps' losses would flatten the rest
        axes.set_ylim(top=min(max(held_out), 2.4))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main(training: Path, picture: Path) -> None:
    """Draw PICTURE (its suffix says the format) from TRAINING, a training.json."""
    with told("train_plot"):
        figure = draw(read_object(training, "Name a training.json that train_model wrote"))
        kind = picture.suffix.removeprefix(".").lower()
        kinds = figure.canvas.get_supported_filetypes()
        if kind not in kinds:
            raise InputError(f"{picture} says no known format", f"End it in {', '.join(kinds)}")
        mpl.rcParams.update({"svg.hashsalt": "loss", "svg.fonttype": "none"})
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else None)
        write_file(picture, drawn.getvalue())


if __name__ == "__main__":
    typer.run(main)
