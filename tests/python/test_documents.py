"""What the documents say: links, names, numbers and figures against what they are about."""

from __future__ import annotations

import html
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from cli_tools import make_host

from host.checkpoint import load_checkpoint
from host.link.client import CHUNK_BYTES, PROTOCOL_VERSION, End
from host.link.exchange import Request, Status
from host.link.frames import MAX_ENCODED, MAX_PAYLOAD
from host.package import facts
from host.tokenizer.spec import MAX_PIECE_BYTES
from tests.conftest import Build

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "weights" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
FOLDERS = "docs|firmware|host|tests|tools|weights"


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def function(source: str, name: str) -> str:
    """The body of a C function."""
    found = re.search(rf"^int {name}\(.*?^}}", read(source), re.M | re.S)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY))
def test_what_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in slugs, link
    for code in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(rf"(?:^|\s)((?:{FOLDERS})/[\w./*-]+)", code):
            if "tllm_model_data.h" not in name:  # which is made
                assert list(REPOSITORY.glob(name.rstrip("/"))), name
        if re.fullmatch(r"test_\w+\.py", code):
            assert list((REPOSITORY / "tests").rglob(code)), code


def test_readme_has_the_commands_of_the_program() -> None:
    defined = set(
        re.findall(r"^@app\.command\(.*?\n(?:@.*\n)*def (\w+)\(", read("host/cli.py"), re.M)
    )
    listed = set(re.findall(r"^\| `host (\w+)", read("README.md"), re.M))
    assert listed | {"demo"} == defined


def test_protocol_has_the_numbers_of_the_program() -> None:
    text = read("docs/PROTOCOL.md")
    requests = re.findall(r"^\| 0x(\w\w) \| ([A-Z_]+)", text, re.M)
    assert {name: int(code, 16) for code, name in requests} == {r.name: r.value for r in Request}
    events = {int(code, 16) for code in re.findall(r"^\| 0x(\w\w) \| \(event", text, re.M)}
    asked = (Request.GENERATE, Request.CAPTURE, Request.DATA)
    assert events == {request | 0x40 for request in asked}
    statuses = [int(code) for code in re.findall(r"^\| (-\d+) E_", text, re.M)]
    assert statuses == sorted((s.value for s in Status if s <= -100), reverse=True)
    assert f"payload 0..{MAX_PAYLOAD} bytes" in text
    assert f"longer than {MAX_ENCODED:,} encoded bytes" in text
    assert f"u16 protocol version = {PROTOCOL_VERSION} " in text
    assert f"each {CHUNK_BYTES:,}-byte chunk" in text
    ends = {End.STOP: "a stop token", End.LENGTH: "n tokens"}
    ends |= {End.CONTEXT: "the context is full", End.CANCELLED: "stopped"}
    assert f"({', '.join(f'{end.value} {words}' for end, words in ends.items())})" in text


@pytest.mark.parametrize(("what", "name"), [("INFO", "dev_on_info"), ("STATS", "dev_on_stats")])
def test_protocol_has_the_fields_of_the_board_s_json(what: str, name: str) -> None:
    body = function("firmware/lib/device/requests.c", name)
    sent = re.findall(r'dev_json_\w+\(&text, "(\w+)"', body)
    listed = re.search(rf"^{what}'s JSON: `{{(.+)}}`", read("docs/PROTOCOL.md"), re.M)
    assert listed is not None
    assert (
        re.findall(r'"(\w+)"(?=[,:}]|$)', re.sub(r': ("[\w-]+" \| )+"\w+"', "", listed[1])) == sent
    )


def test_format_has_the_limits_of_the_program() -> None:
    text = " ".join(read("docs/FORMAT.md").split())
    assert (
        f"vocab <= {facts.MAX_VOCAB}, hidden <= {facts.MAX_HIDDEN}, ffn and heads * head_dim <= "
        f"{facts.MAX_COLUMNS}, head_dim even and <= {facts.MAX_HEAD_DIM}" in text
    )
    assert f"context <= {facts.MAX_CONTEXT}, layers <= {facts.MAX_LAYERS};" in text
    assert f"A piece has 1 to {MAX_PIECE_BYTES:,} bytes" in text


def test_hardware_quotes_what_the_board_says() -> None:
    sources = [*(REPOSITORY / "firmware" / "src").glob("*.c")]
    sources += (REPOSITORY / "firmware" / "lib" / "device").glob("*.c")
    text = re.sub(r'"\s*"', "", "".join(path.read_text(encoding="utf-8") for path in sources))
    quoted = re.findall(r"`((?:No|PSRAM|The|There) [^`]+)`", read("docs/HARDWARE.md"))
    parts = [part.strip() for code in quoted for part in re.split(r"\.\.\.|\b(?:N|4096)\b", code)]
    assert len(quoted) > 10
    assert [part for part in parts if part not in text] == []


def test_reliability_counts_the_fuzzers_inputs() -> None:
    runs = re.findall(r'^    "\w+": Target\(([\d_]+), ', read("tests/fuzz/test_fuzz.py"), re.M)
    assert f"{sum(map(int, runs)):,} in all" in read("docs/RELIABILITY.md")


# --- The bundled model's card ---------------------------------------------------------------------


def test_card_has_the_model_s_figures() -> None:
    card = " ".join(read("weights/README.md").split())
    folder = REPOSITORY / "weights" / "storyteller-1m"
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    last = training["curve"][-1]
    count = sum(tensor.size for tensor in load_checkpoint(folder).tensors.values())
    assert f"{count:,} parameters" in card
    assert f"float16, {(folder / 'model.safetensors').stat().st_size:,} bytes" in card
    assert f"{last['step']:,} steps" in card
    assert f"{last['tokens'] / 1e6:.1f} million tokens, in {last['minutes']:.0f} minutes" in card
    held_out = (
        f"{last['held_out']:.3f} nats a token, the teacher {training['teacher_held_out']:.3f}"
    )
    assert held_out in card
    assert f"| {training['teacher_tokens']:,} |" in card
    assert f"| {training['real_tokens']:,} |" in card


@pytest.mark.shared
def test_card_says_what_the_training_text_shares_with_the_validation_text(shared_dir: Path) -> None:
    from tools.train_data import read_stories, without_overlap

    text = shared_dir / "text"
    train, valid = text / "tinystories-train.txt", text / "tinystories-valid.txt"
    lines = [
        {" ".join(x.split()) for x in p.read_text(encoding="utf-8").splitlines()}
        for p in (train, valid)
    ]
    long = {line for line in lines[1] if len(line) > 40}
    assert long <= lines[0]
    stories = read_stories([train], "(?<!\n)\n(?!\n)")
    dropped = len(stories) - len(without_overlap(stories, [valid]))
    card = read("weights/README.md")
    assert f"Each of the {len(long)} paragraphs" in card
    assert f"({dropped} of {len(stories):,})" in card


def test_card_and_picture_have_the_story_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    build_sim: Build,
    gcc: str,
) -> None:
    said = make_host(monkeypatch, capsys, tmp_path, build_sim(gcc, ("-O2",)))("demo")
    assert said.code == 0, said.err
    told = " ".join(said.out.split())
    stories = [part.replace(">", " ") for part in read("weights/README.md").split("**Seed ")[1:]]
    assert len(stories) == 10
    assert " ".join(stories[0].split()).partition("** ")[2] == told
    drawn = re.findall(r"<text[^>]*>(.*?)</text>", read("docs/demo.svg"))
    picture = " ".join(html.unescape(" ".join(drawn)).split())
    assert told in picture
    steps = [" ".join(line.split()) for line in said.err.splitlines()]
    shown = [picture.index(step) for step in steps if step and not step.startswith("[")]
    assert all(a < b for a, b in pairwise(shown))
