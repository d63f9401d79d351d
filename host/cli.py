"""The command line: parses, calls, prints. Everything else is imported when it is needed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer

from host import __version__
from host.errors import ExitCode, HostError, explain_os_error

if TYPE_CHECKING:
    from host.link.client import Device

app = typer.Typer(
    name="host",
    help="Puts a language model on an ESP32: quantize, flash, chat, verify bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A Hugging Face folder, a llama2.c .bin, a bundled model's name or a hub id; "
        "the bundled model where omitted.",
    ),
]
PackageName = Annotated[
    str | None,
    typer.Argument(
        metavar="PACKAGE",
        show_default=False,
        help="A folder that `host quantize` made; the one it made last where omitted.",
    ),
]
Port = Annotated[
    str,
    typer.Option(
        "--port",
        "-p",
        envvar=["ESPPORT", "HOST_PORT"],
        help="A serial port, socket://HOST:PORT, or sim for the simulated board.",
    ),
]
Baud = Annotated[
    int,
    typer.Option("--baud", "-b", envvar=["ESPBAUD", "HOST_BAUD"], min=300, help="Bits a second."),
]
SimDir = Annotated[
    Path | None,
    typer.Option(
        "--sim-dir",
        envvar="HOST_SIM_DIR",
        show_default=False,
        help="State folder of the simulated board, which one command has at a time.",
    ),
]
RemoveOld = Annotated[
    bool,
    typer.Option(
        "--remove-old", help="First remove packages from the card that are not the current one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Runs the tool; expected failures become one sentence on stderr and an exit code."""
    _prepare_streams()
    try:
        app(standalone_mode=True)
    except HostError as exc:
        _end(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        _end("", ExitCode.INTERRUPTED)
    except SystemExit as exc:
        if not isinstance(exc.__context__, BrokenPipeError):
            raise
        _drop(sys.stdout, sys.stderr)  # typer ends with 1 where the reader has enough
        sys.exit(int(ExitCode.UNREAD))
    except OSError as exc:
        what = None
        if exc.filename is None:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                what = "The output"
                _drop(sys.stdout)
            elif exc.errno == errno.ENOENT:
                what = "The folder that this runs in"
            else:
                raise
        _end(str(explain_os_error(exc, what)), ExitCode.USAGE)


def _prepare_streams() -> None:
    """Gives streams that were closed before the start a place, and all of them UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - to the end
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _drop(*streams: TextIO) -> None:
    """Keeps Python from complaining once more about its streams while it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def _end(message: str, code: ExitCode) -> NoReturn:
    with contextlib.suppress(OSError):  # the code says it all the same
        sys.stderr.write(f"{message}\n")
    sys.exit(int(code))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"host {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _connect(port: str, baud: int, sim_dir: Path | None) -> Device:
    from host.link.client import Device
    from host.link.transports import open_port

    return Device(open_port(port, baud, sim_dir=sim_dir))


# --- models and packages --------------------------------------------------------------------------


@app.command()
def quantize(
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", show_default=False, help="The package's folder."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Tokenizer of a llama2.c .bin: its tokenizer .bin."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a package that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turns a float checkpoint into a package of integers."""
    from host.board.make import make_package, show_package

    made = make_package(model, output, tokenizer=tokenizer, force=force)
    show_package(made, as_json=as_json)


@app.command()
def headers(
    package: PackageName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", show_default=False, help="Folder to write to.")
    ] = None,
) -> None:
    """Writes a package's facts as a C header for the firmware."""
    from host.board import ui
    from host.board.make import make_headers

    ui.say(str(make_headers(package, output)))


# --- the board ------------------------------------------------------------------------------------


@app.command()
def simulate(
    package: PackageName = None,
    card: Annotated[
        Path | None, typer.Option(show_default=False, help="Folder that is the card.")
    ] = None,
    tcp: Annotated[
        int | None,
        typer.Option(show_default=False, min=0, max=65535, help="Listen here instead of a pty."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=2, help="Cores.")] = 2,
    context: Annotated[
        int | None, typer.Option(show_default=False, min=2, help="Positions; the model's.")
    ] = None,
    fast: Annotated[
        int | None, typer.Option(show_default=False, min=1, help="Bytes of fast memory.")
    ] = None,
    bulk: Annotated[
        int | None, typer.Option(show_default=False, min=1, help="Bytes of bulk memory.")
    ] = None,
    card_rate: Annotated[
        float | None, typer.Option(show_default=False, min=0.001, help="MB a second of the card.")
    ] = None,
    card_latency_us: Annotated[
        int | None, typer.Option(show_default=False, min=0, help="Microseconds a read takes more.")
    ] = None,
    line_baud: Annotated[
        int | None, typer.Option(show_default=False, min=300, help="Slow the line down to this.")
    ] = None,
    size: Annotated[bool, typer.Option("--size", help="Print code, stack and memory.")] = False,
    sim_dir: SimDir = None,
) -> None:
    """Runs a simulated ESP32-CAM.

    Any terminal program and `host -p` can talk to it.
    """
    from host.board.simulate import prepare_card, simulate
    from host.link.transports import card_of, taken

    options: list[str] = []
    values = {
        "--tcp": tcp,
        "--threads": threads,
        "--context": context,
        "--fast": fast,
        "--bulk": bulk,
        "--card-rate": card_rate,
        "--card-latency-us": card_latency_us,
        "--baud": line_baud,
    }
    for name, value in values.items():
        if value is not None:
            options += [name, str(value)]
    if size:
        options.append("--size")
    with taken(card or card_of(sim_dir)):
        code = simulate(prepare_card(package, card, sim_dir), options)
    raise typer.Exit(code)


@app.command()
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="Answer this alone; else ask on "
                       "the terminal, or read a prompt a line from a pipe."),
    ] = None,
    port: Port = "sim",
    baud: Baud = 115200,
    sim_dir: SimDir = None,
    temp: Annotated[float, typer.Option("--temp", help="Temperature; 0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Candidates at most; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Share of the probability to draw from.")] = 0.9,
    penalty: Annotated[float, typer.Option(help="Repetition penalty, 1 to 2.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(show_default=False, help="Of the sampling; random.")
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "-n", "--tokens", min=0, max=4_294_967_295, help="Tokens of an answer; 0: no limit."
        ),
    ] = 256,
    drop: Annotated[
        bool, typer.Option(help="Forget the oldest turns when the context is full.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Talks to the model on a board."""
    from host.board import chat as body

    sampling = body.Sampling(
        temp, top_k, top_p, penalty, body.random_seed() if seed is None else seed
    )
    with _connect(port, baud, sim_dir) as device:
        if prompt is not None:
            body.chat(device, [prompt], sampling, n=n, drop=drop, as_json=as_json)
            return
        asks = sys.stdin.isatty()
        prompts = body.prompts_of_terminal() if asks else body.prompts_of_pipe()
        body.chat(device, prompts, sampling, n=n, drop=drop, as_json=as_json)


@app.command()
def verify(
    package: PackageName = None,
    port: Port = "sim",
    baud: Baud = 115200,
    sim_dir: SimDir = None,
    positions: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Positions to compare.")
    ] = 128,
    text: Annotated[
        Path | None, typer.Option(show_default=False, help="A text file to feed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random tokens and sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Compares a board with the reference, bit for bit.

    The exit code is 1 where they differ.
    """
    from host.board import ui
    from host.board.verify import read_text, verify
    from host.models import resolve_package
    from host.package import Package

    given = None if text is None else read_text(text)
    opened = Package.open(resolve_package(package))
    with (
        _connect(port, baud, sim_dir) as device,
        ui.progress("verify", positions, counts="positions") as advance,
    ):
        done = verify(device, opened, positions=positions, text=given, seed=seed, progress=advance)
    if as_json:
        ui.show_json({"positions": done.positions, "stages": done.stages, "equal": True,
                      "sampled": done.sampled, "texts": done.texts})  # fmt: skip
    else:
        ui.say(done.sentence())


@app.command()
def upload(
    package: PackageName = None,
    port: Port = "sim",
    baud: Baud = 115200,
    sim_dir: SimDir = None,
    max_baud: Annotated[
        int, typer.Option(help="The fastest rate to try while uploading.")
    ] = 2_000_000,
    remove_old: RemoveOld = False,
    as_json: Json = False,
) -> None:
    """Sends a package through the board onto its card.

    An upload that was interrupted goes on where it was. The package becomes the current one.
    """
    from dataclasses import asdict

    from host.board import ui
    from host.board.contents import Contents
    from host.board.upload import upload
    from host.models import resolve_package

    contents = Contents.of(resolve_package(package))
    with (
        _connect(port, baud, sim_dir) as device,
        ui.progress("upload", contents.size) as advance,
    ):
        done = upload(
            device, contents, progress=advance, there=advance.there, say=ui.note,
            max_baud=max_baud, remove_old=remove_old,
        )  # fmt: skip
    if as_json:
        ui.show_json(asdict(done))
    else:
        ui.say(done.sentence())


@app.command()
def card(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="A mounted card, a folder, or a name.img for a FAT32 image."
        ),
    ],
    package: PackageName = None,
    remove_old: RemoveOld = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an image that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a package to a card in a reader, a folder or an image.

    What was written is read back and compared.
    """
    from dataclasses import asdict

    from host.board import ui
    from host.board.card import write_target
    from host.board.contents import Contents
    from host.models import resolve_package

    contents = Contents.of(resolve_package(package))
    with ui.progress("card", contents.size) as advance:
        done = write_target(
            target, contents, advance, there=advance.there, remove_old=remove_old, force=force,
            say=ui.note,
        )  # fmt: skip
    if as_json:
        ui.show_json(asdict(done))
    else:
        ui.say(done.sentence())


@app.command()
def flash(
    package: PackageName = None,
    port: Annotated[
        str | None,
        typer.Option(
            "--port",
            "-p",
            envvar=["ESPPORT", "HOST_PORT"],
            show_default=False,
            help="A serial port, or sim; the only USB serial port where omitted.",
        ),
    ] = None,
    baud: Baud = 115200,
    sim_dir: SimDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    remove_old: RemoveOld = False,
    environment: Annotated[
        str, typer.Option("--environment", "-e", help="Of platformio.ini.")
    ] = "esp32cam",
    project: Annotated[
        Path | None,
        typer.Option(show_default=False, help="The kit's checkout, with platformio.ini."),
    ] = None,
    positions: Annotated[int, typer.Option(min=1, max=1_000_000, help="Positions to verify.")] = 8,
    flash_baud: Annotated[
        int, typer.Option(min=9600, help="Bits a second while the flash is written.")
    ] = 460800,
    force: Annotated[
        bool, typer.Option("--force", help="Build and write even where nothing changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Brings firmware and package onto a board and verifies it.

    Builds the firmware for the package, writes it into the flash of a board in its boot loader
    (IO0 at GND while it is reset), uploads the package and verifies it. What is unchanged is
    skipped; nothing is asked.
    """
    from dataclasses import asdict

    from host.board import ui
    from host.board.flash import flash
    from host.models import resolve_package

    done = flash(
        resolve_package(package),
        port,
        baud,
        sim_dir=sim_dir,
        dry_run=dry_run,
        project=project,
        environment=environment,
        positions=positions,
        flash_baud=flash_baud,
        force=force,
        remove_old=remove_old,
        say=ui.note if as_json else ui.say,
    )
    if as_json:
        ui.show_json(None if done is None else asdict(done))


@app.command()
def doctor(
    port: Annotated[
        str | None,
        typer.Option(
            "--port", "-p", envvar=["ESPPORT", "HOST_PORT"], show_default=False,
            help="A serial port, socket://HOST:PORT, or sim; ports alone where omitted.",
        ),
    ] = None,
    baud: Baud = 115200,
    sim_dir: SimDir = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Looks at ports, board, card and memory for what is wrong.

    The exit code is 1 where it finds something.
    """
    from host.board.doctor import examine, show

    report = examine(port, baud, sim_dir)
    show(report, as_json=as_json)
    if report.problems:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


@app.command()
def evaluate(
    text: Annotated[Path, typer.Option(show_default=False, help="A text file.")],
    model: Model = None,
    positions: Annotated[int, typer.Option(min=1, help="Positions to compare.")] = 4000,
    tokenizer: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Tokenizer of a llama2.c .bin."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compares the integer model with the float model on a text."""
    from host.board.make import evaluate_model, show_evaluation

    report = evaluate_model(model, text, positions=positions, tokenizer=tokenizer)
    show_evaluation(report, as_json=as_json)


@app.command()
def bench(
    package: PackageName = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=8, help="Tokens a run.")] = 64,
    as_json: Json = False,
) -> None:
    """Measures the speed of the simulated board.

    Tokens a second, bytes read, prompt against answer.
    """
    from host.board.bench import bench, show

    show(bench(package, tokens), as_json=as_json)


@app.command()
def demo(
    model: Model = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the story.")] = 0,
) -> None:
    """Shows it all on a simulated board, to a story's end.

    Quantizes the bundled model, boots the board, verifies it and chats, or tells one story.
    """
    from host.board.demo import demo

    demo(model, seed)
