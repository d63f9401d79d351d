"""The evaluation: its arithmetic on networks whose answer is known, and the bundled model."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM
from typer import Typer
from typer.testing import CliRunner, Result

from tools.train_evaluate import compare, main, measure, open_model, windows
from tools.train_network import Llama, Shape, save_huggingface
from tools.train_vocabulary import save_tokenizer, train_tokenizer

BUNDLED = Path(__file__).resolve().parents[2] / "weights" / "storyteller-1m"
SHAPE = Shape(vocabulary=320, hidden=16, layers=1, heads=2, kv_heads=1, feed_forward=24, context=32)


@given(length=st.integers(2, 3000), context=st.integers(2, 600))
def test_windows_score_every_token_once(length: int, context: int) -> None:
    scored: list[int] = []
    for start, skipped in windows(length, context):
        assert skipped >= 1
        scored.extend(range(start + skipped, min(start + context, length)))
    assert scored == list(range(1, length))


@pytest.fixture
def model(tmp_path: Path, text_folder: Path) -> Path:
    """A network that knows nothing: every token is equally likely."""
    network = Llama(SHAPE)
    network.initialize(0)
    with torch.no_grad():
        network.model.norm.weight.zero_()
    folder = tmp_path / "model"
    save_huggingface(network, folder)
    stories = [(text_folder / "stories.txt").read_text(encoding="utf-8")]
    save_tokenizer(train_tokenizer(stories, 320), folder, 32)
    return folder


def test_uniform_network_costs_the_vocabulary(model: Path, text_folder: Path) -> None:
    text = (text_folder / "stories.txt").read_text(encoding="utf-8")
    measured = measure(open_model(model), text, 32)
    expected = measured.tokens * math.log2(320) / len(text.encode())
    assert measured.bits_per_byte == pytest.approx(expected, rel=1e-6)
    assert measured.int8_mean_kl == pytest.approx(0.0, abs=1e-9)
    assert measured.int8_top1 == 1.0


def test_rounding_costs_what_the_definition_says() -> None:
    network = Llama(SHAPE)
    network.initialize(5)
    with torch.no_grad():  # an outlier makes the rounding coarse and the divergence lopsided
        network.model.embed_tokens.weight[0, 0] = 3.0
    ids = torch.randint(0, 320, (32,), generator=torch.Generator().manual_seed(0))
    nats, rounded_nats, divergence, agreement = compare(network, ids, 32)
    rounded = Llama(SHAPE)
    rounded.load_state_dict(
        {
            name: w if w.ndim < 2 else (w * 127 / w.abs().max()).round() * w.abs().max() / 127
            for name, w in network.state_dict().items()
        }
    )
    with torch.inference_mode():
        p = network(ids[None])[0, :-1].double().softmax(-1)
        q = rounded(ids[None])[0, :-1].double().softmax(-1)
    assert nats == pytest.approx(-float(p.log()[range(31), ids[1:]].sum()))
    assert rounded_nats == pytest.approx(-float(q.log()[range(31), ids[1:]].sum()))
    assert divergence == pytest.approx(float((p * (p / q).log()).sum() / 31), rel=1e-4)
    assert divergence > 1e-3
    assert agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_command_prints_json_and_refuses_what_it_cannot_measure(
    model: Path, text_folder: Path
) -> None:
    text = text_folder / "stories.txt"
    result = invoke(text, model, "--context", "32", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["parameters"] == sum(
        p.numel() for p in Llama(SHAPE).parameters()
    )
    for arguments, said in (
        ([text, model, "--context", "33"], "Lower --context"),
        ([text, model / "nothing"], "There is no model"),
        ([text_folder / "none", model], "does not exist"),
        ([text_folder, model], "is a folder"),
        ([model / "model.safetensors", model], "Name a UTF-8 text"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def invoke(*arguments: str | Path) -> Result:
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_model_is_found_as_everywhere(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time, there was a little girl.", encoding="utf-8")
    for named in ([], ["storyteller-1m"], ["weights/storyteller-1m"], [BUNDLED]):
        result = invoke(text, *named, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["model"] == "storyteller-1m"


def test_model_saved_again_by_transformers_is_measured_alike(
    model: Path, text_folder: Path, tmp_path: Path
) -> None:
    text = (text_folder / "stories.txt").read_text(encoding="utf-8")
    again = tmp_path / "again"
    LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(again)
    AutoTokenizer.from_pretrained(model).save_pretrained(again)
    assert not (again / "tokenizer.model").exists()
    assert {**vars(measure(open_model(again), text, 32)), "model": ""} == {
        **vars(measure(open_model(model), text, 32)),
        "model": "",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "the activation"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "states rope_theta twice"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "RoPE scaling"),
        ({"hidden_size": 32, "head_dim": 16}, "asks for 320 x 32"),
        ({"vocab_size": 321}, "asks for 321 x 16"),
    ],
)
def test_config_that_is_not_computed_is_refused(
    model: Path, text_folder: Path, change: dict[str, object], said: str
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **change}))
    result = invoke(text_folder / "stories.txt", model, "--context", "32")
    assert result.exit_code == 2
    assert result.stderr.count(said) == len(result.stderr.splitlines()) == 1


def test_changed_rope_theta_is_computed(text_folder: Path, tmp_path: Path) -> None:
    text = (text_folder / "stories.txt").read_text(encoding="utf-8")[:500]
    folder = tmp_path / "copy"
    shutil.copytree(BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    bits = []
    for theta in (10000.0, 500.0):
        changed = {**config, "rope_parameters": {"rope_theta": theta}}
        (folder / "config.json").write_text(json.dumps(changed))
        bits.append(measure(open_model(folder), text, 512).bits_per_byte)
    assert bits[0] == measure(open_model(BUNDLED), text, 512).bits_per_byte
    assert bits[1] > bits[0] + 0.01


def test_truncated_weights_are_one_sentence(model: Path, text_folder: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = invoke(text_folder / "stories.txt", model, "--context", "32")
    assert result.exit_code == 2
    assert result.stderr.count("not inside the file") == len(result.stderr.splitlines()) == 1


def test_table_in_a_pipe_is_whole(model: Path, text_folder: Path) -> None:
    long = model.rename(model.with_name("a-[name]-" * 20 + "end"))
    result = invoke(text_folder / "stories.txt", long, "--context", "32")
    assert result.exit_code == 0
    (row,) = (line for line in result.stdout.splitlines() if long.name in line)
    assert row.strip().endswith("100.00 %")


def test_samples_are_json_where_json_is_asked_for(model: Path, text_folder: Path) -> None:
    text = text_folder / "stories.txt"
    result = invoke(text, model, "--context", "32", "--samples", "2", "--json")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("seed") for line in lines] == [None, 0, 1]
    assert lines[1]["story"] != lines[2]["story"]


@pytest.mark.shared
@pytest.mark.slow
def test_bundled_model_keeps_what_its_card_promises(shared_dir: Path) -> None:
    text = (shared_dir / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")
    ours = measure(open_model(BUNDLED), text, 512)
    theirs = measure(open_model(shared_dir / "models/stories260K/stories260K.bin"), text, 512)
    assert ours.bits_per_byte <= 1.05 * theirs.bits_per_byte
    assert ours.int8_mean_kl <= 0.004
    assert ours.int8_top1 >= 0.96
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 8_000_000
    card = BUNDLED.with_name("README.md").read_text(encoding="utf-8")
    for name, entry in (("storyteller-1m", ours), ("stories260K", theirs)):
        row = re.search(rf"^\| {name} \| {entry.parameters:,} \|(.+)$", card, re.M)
        assert row is not None
        bits, int8_bits, divergence, top1 = map(float, re.findall(r"\d+\.\d+", row[1]))
        assert bits == pytest.approx(entry.bits_per_byte, abs=2e-4)
        assert int8_bits == pytest.approx(entry.int8_bits_per_byte, abs=2e-4)
        assert divergence == pytest.approx(entry.int8_mean_kl, abs=2e-5)
        assert top1 == pytest.approx(100 * entry.int8_top1, abs=0.05)
