"""Recognises pickles, which are never read: to read one is to run what its author put in it."""

from __future__ import annotations

from pathlib import Path

from host.errors import InputError

_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ZIP = b"PK\x03\x04"
_PROTOCOLS = range(1, 6)


def pickle_error(path: Path) -> InputError:
    """Returns the error that says so."""
    return InputError(
        f"{path} is a pickle, which can run any program when it is read, and is refused",
        "Save the model as safetensors, with `save_pretrained`",
    )


def is_pickle_name(path: Path) -> bool:
    """Returns whether a file is called as pickled checkpoints are."""
    return path.suffix.lower() in _SUFFIXES or path.name.startswith("pytorch_model")


def is_pickle(start: bytes) -> bool:
    """Returns whether a file's first bytes are those of a pickle, or of torch's zip of pickles.

    A pickle of protocol 2 or later begins with 0x80 and the protocol, and no opcode is 0; the
    dimension 640 of a llama2.c file begins with the same two bytes, but 0 follows.
    """
    if start.startswith(_ZIP):
        return True
    return len(start) > 2 and start[0] == 0x80 and start[1] in _PROTOCOLS and start[2] != 0


def pickles_in(folder: Path) -> list[Path]:
    """Returns the files of a folder that are called as pickled checkpoints are."""
    return sorted(
        path
        for path in folder.glob("*")
        if path.is_file() and is_pickle_name(path) and path.suffix != ".json"
    )
