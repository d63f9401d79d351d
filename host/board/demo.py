"""`host demo`: everything once, with nothing but what is installed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from host.board import ui
from host.board.card import write_card
from host.board.chat import Sampling, chat, prompts_of_terminal
from host.board.contents import Contents
from host.board.verify import verify
from host.link.client import Device
from host.link.transports import card_of, open_port
from host.models import name_of, resolve_model

_POSITIONS = 16
_STORY = "Once upon a time"
_STORY_TOKENS = 480


def demo(model: str | None = None, seed: int = 0) -> None:
    """Quantizes, boots a simulated ESP32-CAM, verifies it, and chats or tells one story.

    Args:
        model: A checkpoint; the bundled one where omitted.
        seed: Of the story.

    Raises:
        HostError: A step failed.
    """
    from host.checkpoint import load_checkpoint
    from host.package import Package
    from host.quantize import quantize_checkpoint

    sampling = Sampling(seed=seed)
    path = resolve_model(model)
    with tempfile.TemporaryDirectory(prefix="host-demo-") as folder:
        state = Path(folder)
        package = state / f"{name_of(path)}-int8"
        ui.note(f"1/4 quantize {name_of(path)}")
        made = quantize_checkpoint(load_checkpoint(path), package)
        ui.note(f"    {len(made.rows)} tensors, {made.weight_bytes:,} bytes of integers")
        card_of(state).parent.mkdir(exist_ok=True)
        write_card(card_of(state), Contents.of(package))
        ui.note("2/4 boot the simulated ESP32-CAM from a card with these files")
        with Device(open_port("sim", sim_dir=state)) as device:
            info = device.info()
            ui.note(
                f"    {info.get('board')}: {info.get('fast_bytes', 0):,} bytes of fast memory, "
                f"{info.get('bulk_bytes', 0):,} of bulk memory, state {info.get('state')}"
            )
            ui.note("3/4 verify it against the Python reference, bit for bit")
            checked = verify(device, Package.open(package, verify=False), positions=_POSITIONS)
            ui.note(f"    {checked.sentence()}")
            if sys.stdin.isatty() and sys.stdout.isatty():
                ui.note("4/4 chat")
                chat(device, prompts_of_terminal(), sampling, drop=True)
            else:
                ui.note(f"4/4 one story, seed {seed}")
                chat(device, [_STORY], sampling, n=_STORY_TOKENS, echo=True)
