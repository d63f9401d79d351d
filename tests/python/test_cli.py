"""The commands as a user types them, on the simulated board; and what they say of bad input."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
from cli_tools import Host, make_host, snapshot

from host.board.contents import Contents, parse_slot
from host.models import resolve_model
from tests.conftest import Build, Quantized

pytestmark = pytest.mark.shared
BINARIES = ("-O2",)
PROMPT = b"\x1b[?2004h"  # a line editor is there and takes pasted text
COMMANDS = [
    *("quantize", "headers", "simulate", "chat", "verify", "upload"),
    *("card", "flash", "doctor", "evaluate", "bench", "demo"),
]


@pytest.fixture(scope="module")
def sim(build_sim: Build, gcc: str) -> Path:
    return build_sim(gcc, BINARIES)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path, sim: Path
) -> Host:
    return make_host(monkeypatch, capsys, state, sim)


@pytest.fixture
def package(quantized: Quantized) -> Path:
    return quantized("stories260K")


@pytest.fixture
def loaded(host: Host, package: Path, state: Path) -> Host:
    """A simulated board with stories260K on its card."""
    assert host("card", state / "sim" / "card", package).code == 2  # its folder is not there yet
    (state / "sim").mkdir(parents=True)
    assert host("card", state / "sim" / "card", package).code == 0
    return host


def sentence(err: str) -> str:
    """The one line that an expected failure is."""
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].endswith((".", "!", "?"))
    return lines[0]


# --- the way through ------------------------------------------------------------------------------


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from host.cli import app, main; sys.argv = ['host', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'serial', 'torch', 'prompt_toolkit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]  # no sentence is cut
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_quantize_flash_chat_verify_without_naming_the_package(
    host: Host, stories260k_bin: Path, stories260k_tokenizer: Path, tmp_path: Path
) -> None:
    made = host(
        "quantize", stories260k_bin, "-o", tmp_path / "p", "--tokenizer", stories260k_tokenizer
    )
    assert made.code == 0, made.err
    assert re.search(r"layer04_down_proj +64 x 172 +int8 +11,008 ", made.out)
    assert "260,736 bytes of weights" in made.out
    flashed = host("flash", "-p", "sim")
    assert flashed.code == 0, flashed.err
    assert "makes it the current model" in flashed.out.splitlines()[0]
    assert "5/5 verify: 8 positions, all equal" in flashed.out
    chatted = host("chat", "-p", "sim", "Once upon a time", "-n", 20, "--temp", 0)
    assert chatted.code == 0
    assert chatted.out.startswith(", there was a little girl named Lily.")
    assert re.search(r"\[20 tokens, [\d.]+ tokens/s, \d+ % reading, length\]", chatted.err)
    verified = host("verify", "-p", "sim", "--positions", 12, "--json")
    assert json.loads(verified.out)["positions"] == 12
    dry = host("flash", "-p", "sim", "--dry-run", "--json")
    assert dry.code == 0
    assert json.loads(dry.out) is None
    assert "Nothing was done" in dry.err
    again = host("upload", "-p", "sim")
    assert "has all" in again.out


def test_the_same_seed_gives_the_same_text_and_another_gives_another(loaded: Host) -> None:
    said = [
        json.loads(loaded("chat", "Hello", "-n", 30, "--seed", seed, "--json").out)
        for seed in (7, 7, 8)
    ]
    assert said[0]["text"] == said[1]["text"] != said[2]["text"]
    assert said[0]["seed"] == 7
    assert said[0]["tokens"] == 30


def test_a_pipe_gives_a_prompt_a_line_in_one_conversation(loaded: Host) -> None:
    said = loaded("chat", "-n", 5, "--json", stdin="One day\n\nThe end ü\r\n".encode())
    assert said.code == 0
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["One day", "The end ü"]


def test_chat_ends_where_the_context_does_or_drops_as_asked(loaded: Host) -> None:
    said = json.loads(loaded("chat", "Once", "-n", 0, "--temp", 0, "--json").out)
    assert said["end"] in ("context full", "stop")
    full = loaded("chat", "-n", 0, "--temp", 0, stdin=b"Once\nOnce\nOnce\n" * 20)
    assert full.code == 2
    assert "host chat` again" in full.err.splitlines()[-1]
    assert "/reset" not in full.err  # which is the board's own terminal's
    dropped = loaded("chat", "--drop", "-n", 300, "--json", stdin=b"Once\nOnce\nOnce\n")
    assert dropped.code == 0
    assert len(dropped.out.splitlines()) == 3


def test_demo_in_a_pipe_tells_a_story(host: Host, stories260k_bin: Path, state: Path) -> None:
    said = host("demo", stories260k_bin)
    assert said.code == 0, said.err
    assert said.out.startswith("Once upon a time")
    assert [line[:3] for line in said.err.splitlines() if re.match(r"\d/4", line)] == [
        "1/4", "2/4", "3/4", "4/4",
    ]  # fmt: skip
    assert "16 positions, all equal" in said.err
    assert not state.exists()


def test_bench_prints_each_figure_on_its_line(host: Host, package: Path) -> None:
    said = host("bench", package, "-n", 16)
    assert said.code == 0, said.err
    starts = ["answer, 1 thread", "prompt, 1 thread", "prompt against answer", "read from the card"]
    assert [
        line.startswith(start) for line, start in zip(said.out.splitlines(), starts, strict=True)
    ]
    runs = json.loads(host("bench", package, "-n", 16, "--json").out)
    assert [run["threads"] for run in runs] == [1, 2]
    assert all(run["tokens_per_second"] > 0 for run in runs)


def test_doctor_looks_at_board_card_and_chunks(loaded: Host) -> None:
    report = json.loads(loaded("doctor", "-p", "sim", "--json").out)
    assert report["problems"] == []
    assert report["board"]["state"] == "ready"
    assert set(report["read_rates"]) >= {"512", "4096", "8192"}
    assert report["checked_chunks"] > 20
    assert report["wrong_chunks"] == 0
    said = loaded("doctor", "-p", "sim")
    assert said.code == 0
    assert "All is well." in said.out


def test_a_headers_command_writes_the_header(host: Host, package: Path, tmp_path: Path) -> None:
    said = host("headers", package, "-o", tmp_path)
    assert said.code == 0
    assert Path(said.out.strip()).read_text(encoding="ascii").startswith("/*")


# --- ways to the board ----------------------------------------------------------------------------


@pytest.fixture
def running(sim: Path, package: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The simulated board behind a pseudo-terminal and behind TCP: how each is reached."""
    from host.board.card import write_card

    write_card(tmp_path / "card", Contents.of(package))
    processes, found = [], {}
    for kind, options in {"pty": ["--pty"], "tcp": ["--tcp", "0"]}.items():
        process = subprocess.Popen(
            [str(sim), "--card", str(tmp_path / "card"), *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        match = None
        while match is None:
            line = process.stdout.readline()
            assert line, "the simulated board ended"
            match = re.search(r"(/dev/\S+|socket://\S+)", line)
        found[kind] = match[1]
    yield found
    for process in processes:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("kind", ["pty", "tcp"])
def test_a_pseudo_terminal_and_a_socket_are_ports(
    host: Host, running: dict[str, str], package: Path, kind: str
) -> None:
    said = host("chat", "-p", running[kind], "Once upon a time", "-n", 20, "--temp", 0)
    assert said.code == 0, said.err
    assert said.out.startswith(", there was a little girl named Lily.")
    assert "all equal" in host("flash", "-p", running[kind], package).out


def test_a_port_may_come_from_the_environment(
    host: Host, running: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPPORT", running["tcp"])
    assert json.loads(host("doctor", "--json").out)["port"] == running["tcp"]


def test_simulate_prints_where_it_is_and_ends_with_ctrl_c(
    sim: Path, package: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "TLLM_SIM": str(sim), "HOST_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "host", "simulate", str(package), "--tcp", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = ""
        while "socket://" not in line:
            line = process.stdout.readline()
            assert line
        other = subprocess.run(
            [sys.executable, "-m", "host", "upload", "-p", "sim", str(package)],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert other.returncode == 2
        assert "is in use by another command" in sentence(other.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    slot = parse_slot((tmp_path / "sim" / "card" / "tllm" / "slot0").read_bytes())
    assert slot is not None
    assert slot[1] == Contents.of(package).fingerprint


def test_ctrl_c_stops_the_answer(loaded: Host, state: Path, sim: Path) -> None:
    assert loaded("doctor", "-p", "sim").code == 0
    slow = state / "slow-sim"
    slow.write_text(f'#!/bin/sh\nexec "{sim}" --card-latency-us 20000 --bulk 1500000 "$@"\n')
    slow.chmod(0o755)
    environment = {**os.environ, "TLLM_SIM": str(slow), "HOST_STATE_DIR": str(state)}
    with subprocess.Popen(
        [sys.executable, "-m", "host", "chat", "-p", "sim", "Once", "-n", "0", "--temp", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"stopped]" in err


def test_a_terminal_has_line_editing_and_history(loaded: Host, state: Path, sim: Path) -> None:
    assert loaded("doctor", "-p", "sim").code == 0
    environment = {
        **os.environ,
        "TLLM_SIM": str(sim),
        "HOST_STATE_DIR": str(state),
        "TERM": "vt100",
    }
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "host", "chat", "-p", "sim", "-n", "9", "--temp", "0"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    ) as process:
        os.close(slave)
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                data = os.read(master, 4096)
                if b"\x1b[6n" in data:  # where is the cursor?
                    os.write(master, b"\x1b[1;1R")
                seen += data
            seen = seen.partition(text)[2]

        until(b"Type a prompt")
        until(PROMPT)
        os.write(master, b"Once upon a timX\x7fe\r")
        until(b", there was")
        until(b"length]")
        until(PROMPT)
        os.write(master, b"\x1b[A\r")
        until(b"Once upon a time")
        until(b"length]")
        until(PROMPT)
        os.write(master, b"\x04")
        assert process.wait() == 0
    os.close(master)
    assert (state / "history").read_text().count("+Once upon a time\n") == 1


def test_prompts_on_a_terminal_stay_out_of_a_file_of_answers(
    loaded: Host, state: Path, sim: Path, tmp_path: Path
) -> None:
    assert loaded("doctor", "-p", "sim").code == 0
    environment = {
        **os.environ,
        "TLLM_SIM": str(sim),
        "HOST_STATE_DIR": str(state),
        "TERM": "vt100",
    }
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "host", "chat", "-p", "sim", "-n", "9", "--json"]
    with (
        (tmp_path / "answers").open("wb") as answers,
        subprocess.Popen(
            command, stdin=slave, stdout=answers, stderr=slave, env=environment,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        os.close(slave)
        for keys in (b"Once\r", b"Then\r", b"\x04"):
            seen = b""
            while PROMPT not in seen:
                assert select.select([master], [], [], 60)[0], "no prompt on the terminal"
                data = os.read(master, 4096)
                if b"\x1b[6n" in data:
                    os.write(master, b"\x1b[1;1R")
                seen += data
            os.write(master, keys)
        assert process.wait() == 0
    os.close(master)
    lines = (tmp_path / "answers").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["Once", "Then"]


def in_a_terminal(columns: int, *args: object, **environment: str) -> bytes:
    """What `host` shows on a terminal of some width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "host", *map(str, args)]
    settings = {**os.environ, "TERM": "xterm", **environment}
    settings.pop("COLUMNS", None)
    shown = b""
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=settings
    ) as process:
        os.close(slave)
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while data := os.read(master, 4096):
                shown += data
    os.close(master)
    assert process.returncode == 0, shown
    return shown


def test_a_narrow_terminal_cuts_no_figure_and_no_colour_is_none(
    stories260k_bin: Path, stories260k_tokenizer: Path, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    args = ("quantize", stories260k_bin, "--tokenizer", stories260k_tokenizer, "-o")
    shown = in_a_terminal(30, *args, tmp_path / "a", HOST_STATE_DIR=state, NO_COLOR="1")
    assert re.search(rb"layer04_down_proj +64 x 172 +int8 +11,008 ", shown)
    assert "…".encode() not in shown.partition(b"tensor")[2]
    assert not re.search(rb"\x1b\[(1;)?[39]\dm", shown)


# --- streams that are not there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("> /dev/full", 2, "The output does not fit: the disk is full."),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full_are_no_reason_for_a_traceback(
    loaded: Host, state: Path, sim: Path, redirect: str, code: int, said: str
) -> None:
    assert loaded("doctor", "-p", "sim").code == 0
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m host doctor -p sim {redirect}', sys.executable],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TLLM_SIM": str(sim), "HOST_STATE_DIR": str(state)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "stream", "code"),
    [
        (["doctor"], "stdout", 141),
        (["chat", "-p", "sim", "Once", "-n", "9"], "stdout", 141),
        (["chat", "-p", "sim", "Once", "-n", "9"], "stderr", 141),
        (["simulate", "--tcp", "0"], "stdout", 141),
        (["--help"], "stdout", 141),
        (["quantize", "none"], "stderr", 2),
    ],
)
def test_a_reader_that_has_enough_ends_any_command_quietly(
    loaded: Host, state: Path, sim: Path, args: list[str], stream: str, code: int
) -> None:
    assert loaded("doctor", "-p", "sim").code == 0
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "host", *args],
        stdin=subprocess.DEVNULL, text=True,
        stdout=writer if stream == "stdout" else subprocess.PIPE,
        stderr=writer if stream == "stderr" else subprocess.PIPE,
        env={**os.environ, "TLLM_SIM": str(sim), "HOST_STATE_DIR": str(state)},
    ) as process:  # fmt: skip
        os.close(writer)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert not err


def test_a_full_stderr_leaves_the_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "host", "quantize", "none"], stderr=full)
    assert done.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_takes_the_simulated_board_along(
    sim: Path, package: Path, tmp_path: Path, number: signal.Signals
) -> None:
    environment = {**os.environ, "TLLM_SIM": str(sim), "HOST_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "host", "simulate", str(package), "--tcp", "0"],
        stdout=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup has it ignored
    ) as process:  # fmt: skip
        assert process.stdout is not None
        match = re.search(r"socket://(\S+):(\d+)", process.stdout.readline())
        assert match
        process.send_signal(number)
        try:
            assert process.wait(timeout=60) == 128 + number
        finally:
            process.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((match[1], int(match[2])))


def test_ctrl_c_while_modules_are_imported_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "host", "doctor"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_package_that_cannot_be_remembered_is_made_all_the_same(
    host: Host, stories260k_bin: Path, tmp_path: Path, state: Path
) -> None:
    state.write_text("a file where the folder would be")
    said = host("quantize", stories260k_bin, "-o", tmp_path / "p")
    assert said.code == 0
    assert "have to be given its name" in sentence(said.err)
    assert "fingerprint" in said.out


def test_what_a_card_got_is_json_for_programs(host: Host, package: Path, tmp_path: Path) -> None:
    said = json.loads(host("card", tmp_path / "card", package, "--json").out)
    assert said["files"] > 10
    assert said["switched"] is True


# --- bad input: one sentence, exit 2, nothing written ---------------------------------------------


def test_bad_arguments_are_one_sentence_each(host: Host, package: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[list[object], str]] = [
        (["quantize", tmp_path / "none.bin"], "no model"),
        (["quantize", package], "is a package"),
        (["quantize", "~nosuchuser/x"], "no model ~nosuchuser/x"),
        (["quantize", "x" * 300], "too long a name"),
        (["quantize", "-o", tmp_path / "text.txt" / "p"], "text.txt is there and is no folder"),
        (["headers", "~nosuchuser"], "no package ~nosuchuser"),
        (["headers", package, "-o", tmp_path / "text.txt"], "is there and is no folder"),
        (["verify", tmp_path / "model"], "is a model, not a package"),
        (["verify", tmp_path / "text.txt"], "no package"),
        (["upload", tmp_path / "none"], "no package"),
        (["upload"], "no package yet"),
        (["verify", package, "--text", tmp_path / "text.txt"], "not UTF-8"),
        (["verify", package, "--text", tmp_path / "none.txt"], "does not exist"),
        (["verify", package, "--text", tmp_path / "pipe"], "is a pipe"),
        (["verify", package, "--text", "/dev/zero"], "is a device"),
        (["verify", package, "--seed", 1 << 64], "seed must be a number"),
        (["demo", "--seed", 1 << 64], "seed must be a number"),
        (["chat", "hi"], "model"),
        (["chat", "hi", "-p", "/dev/ttyNONE7"], "does not exist"),
        (["chat", "hi", "-p", tmp_path / "text.txt"], "not a serial port"),
        (["chat", "hi", "-p", "socket://127.0.0.1:1"], "refuses"),
        (["chat", "hi", "-p", "socket://nothing"], "not an address"),
        (["chat", "hi", "-p", "sim", "--temp", "-1"], "temperature"),
        (["chat", "hi", "-p", "sim", "--top-p", "2"], "top-p"),
        (["card", tmp_path / "no" / "card", package], "no does not exist"),
        (["card", tmp_path / "text.txt" / "card", package], "text.txt is no folder"),
        (["card", tmp_path / "text.txt", package], "is there and is no folder"),
        (["card", "x" * 300, package], "too long a name"),
        (["flash", package], "No serial port"),
        (["evaluate", tmp_path / "model", "--text", tmp_path / "text.txt"], "safetensors"),
    ]
    before = snapshot(tmp_path)
    for args, wanted in cases:
        said = host(*args)
        assert said.code == 2, (args, said)
        assert wanted in sentence(said.err), (args, said.err)
        assert said.out == "", args
    after = {k: v for k, v in snapshot(tmp_path).items() if not k.startswith("state/sim")}
    assert after == before


@pytest.mark.parametrize(
    "args",
    [
        ["chat", "hi", "-n", 1 << 32],
        ["verify", "--positions", 10**14],
        ["flash", "--positions", 10**14],
    ],
)
def test_numbers_beyond_what_a_board_takes_are_usage_errors(host: Host, args: list[object]) -> None:
    said = host(*args)
    assert said.code == 2
    assert "less than or equal" in said.err or "range" in said.err
    assert said.out == ""


def test_a_folder_that_is_not_there_any_more_is_a_sentence(
    host: Host, stories260k_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = host("quantize", stories260k_bin)
    assert said.code == 2
    assert "folder that this runs in does not exist" in sentence(said.err)


def test_an_empty_card_says_what_to_do(host: Host) -> None:
    said = host("chat", "hi", "-p", "sim")
    assert said.code == 2
    assert sentence(said.err).endswith("`host upload` or `host card` puts one there.")


def test_input_that_is_not_utf8_is_refused_where_it_is(loaded: Host) -> None:
    said = loaded("chat", "-p", "sim", "-n", 1, stdin=b"a\xffb\n")
    assert said.code == 2
    assert "Line 1 of the input is not UTF-8" in sentence(said.err)


def test_a_prompt_that_is_not_utf8_is_refused(loaded: Host) -> None:
    said = loaded("chat", "-p", "sim", "-n", 1, os.fsdecode(b"a\xff"))
    assert said.code == 2
    assert "character 2" in sentence(said.err)
    assert said.out == ""


def test_a_prompt_longer_than_the_context_is_refused(loaded: Host) -> None:
    said = loaded("chat", "-p", "sim", "-n", 1, "q z x " * 600)
    assert said.code == 2
    assert re.search(r"prompt|context", sentence(said.err))
    said = loaded("chat", "-p", "sim", "-n", 1, "x" * 5000)
    assert said.code == 2
    assert "5,000 bytes" in sentence(said.err)


def test_a_card_for_another_model_is_refused(loaded: Host, quantized: Quantized) -> None:
    said = loaded("verify", quantized("bundled"), "-p", "sim")
    assert said.code == 2
    assert "another model: stories260K" in sentence(said.err)


def test_one_flipped_bit_on_the_card_is_found_named_and_mended(
    loaded: Host, package: Path, state: Path
) -> None:
    folder = state / "sim" / "card" / "tllm" / Contents.of(package).folder
    path = folder / "layer03_up_proj.bin"
    data = bytearray(path.read_bytes())
    data[4100] ^= 1
    path.write_bytes(data)
    said = loaded("chat", "-p", "sim", "hi", "-n", 3)
    assert said.code == 2
    assert "layer03_up_proj.bin" in sentence(said.err)
    assert loaded("doctor", "-p", "sim").code == 1
    assert "1 files sent" in loaded("upload", "-p", "sim", package).out
    assert loaded("chat", "-p", "sim", "hi", "-n", 3).code == 0


def test_a_damaged_package_is_refused_before_anything_is_sent(
    host: Host, package: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    data = bytearray((copy / "final_norm.bin").read_bytes())
    data[3] ^= 8
    (copy / "final_norm.bin").write_bytes(data)
    for command in ("upload", "verify", "card"):
        args = [tmp_path / "target"] if command == "card" else []
        said = host(command, *args, copy)
        assert said.code == 2
        assert "final_norm.bin is damaged" in sentence(said.err)
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "state").exists()


def test_a_full_disk_is_said_before_anything_is_written(
    host: Host, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 20, 1 << 20, 1000))
    said = host("card", tmp_path / "card", package)
    assert said.code == 2
    assert "1,000 bytes free" in sentence(said.err)
    assert snapshot(tmp_path / "card") == {}


@pytest.mark.parametrize("context", [1, 4, 20])
def test_a_short_context_is_verified_and_too_short_to_measure(
    host: Host, tmp_path: Path, context: int
) -> None:
    model = shutil.copytree(resolve_model(None), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = context
    (model / "config.json").write_text(json.dumps(config))
    assert host("quantize", model, "-o", tmp_path / "p").code == 0
    said = host("flash", "-p", "sim", "--positions", 4, "--json")
    assert said.code == 0, said.err
    verified = json.loads(said.out)["verified"]
    assert verified["positions"] == 4
    assert verified["sampled"] == {1: 0, 4: 6, 20: 6 + 15}[context]
    said = host("bench")
    assert said.code == 2
    assert f"context of {context} positions" in sentence(said.err)


@pytest.mark.parametrize("name", ["my mödel", ".m", "a" * 40])
def test_a_model_of_any_name_is_quantized_again(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(resolve_model(None), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        said = host("quantize", name)
        assert said.code == 0, said.err
    assert (tmp_path / f"{name}-int8" / "manifest.json").is_file()


def test_a_package_of_another_model_is_not_replaced_unasked(
    host: Host, stories260k_bin: Path, quantized: Quantized, tmp_path: Path
) -> None:
    shutil.copytree(quantized("bundled"), tmp_path / "p")
    before = snapshot(tmp_path)
    said = host("quantize", stories260k_bin, "-o", tmp_path / "p")
    assert said.code == 2
    assert "another model" in sentence(said.err)
    assert snapshot(tmp_path) == before
    assert host("quantize", stories260k_bin, "-o", tmp_path / "p", "--force").code == 0


def test_a_port_that_another_program_has_open_is_busy(host: Host) -> None:
    master, slave = pty.openpty()
    try:
        name = os.ttyname(slave)
        with serial.Serial(name, exclusive=True):
            said = host("chat", "hi", "-p", name)
    finally:
        os.close(master)
        os.close(slave)
    assert said.code == 2
    assert "in use by another program" in sentence(said.err)
