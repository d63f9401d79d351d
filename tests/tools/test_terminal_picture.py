"""The picture of a terminal: what was printed, and nothing fetched from elsewhere."""

import html
import re
import sys
from pathlib import Path

import pytest

from tools.terminal_picture import main


def test_what_both_streams_print_is_in_the_picture_and_no_address_is(tmp_path: Path) -> None:
    picture = tmp_path / "run.svg"
    program = "import sys; print('  to <stdout>', flush=True); print('to stderr', file=sys.stderr)"
    assert main([str(picture), sys.executable, "-c", program]) == 0
    drawn = picture.read_text(encoding="utf-8")
    shown = html.unescape(re.sub("<[^>]*>", "", drawn)).replace("\N{NO-BREAK SPACE}", " ")
    assert "  to <stdout>" in shown
    assert "to stderr" in shown
    assert re.findall(r"https?://[^\"]*", drawn) == ["http://www.w3.org/2000/svg"]


def test_a_command_that_fails_leaves_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "run.svg"
    assert main([str(picture), sys.executable, "-c", "raise SystemExit('no board')"]) == 2
    assert "no board" in capsys.readouterr().err
    assert not picture.exists()
    assert main([str(picture)]) == 2
