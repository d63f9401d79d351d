"""What the board's program says again and again where it cannot run: it answers no request then.

The sentences are those of `refuse` in firmware/src/main.c.
"""

from __future__ import annotations

import re

from host.errors import BoardError

KEPT_BYTES = 1 << 9  # the longest sentence twice, so that one is whole wherever the bytes begin
_SENTENCE = re.compile(
    rb"((?:No PSRAM was found, |The PSRAM does not keep |PSRAM of \d+ bytes was found, "
    rb"|The internal memory has no block |There is no internal memory for "
    rb"|The memory does not hold the board's program)[ -~]*)\r\n"
)


def refusal_in(said: bytes) -> BoardError | None:
    """The board's own sentence, with what to do; None where it says none."""
    found = _SENTENCE.search(said)
    return BoardError(found[1].decode("ascii")) if found else None
