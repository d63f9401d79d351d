"""Training: what a run leaves, that it can be resumed, and what it refuses."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM
from typer import Typer
from typer.testing import CliRunner

from host.errors import InputError
from host.strict_json import parse_object
from tools.train_data import find_texts, read_stories, without_overlap
from tools.train_model import Run, main, schedule
from tools.train_optimizer import orthogonalize
from tools.train_plot import draw
from tools.train_plot import main as plot
from tools.train_quantize import clip_outliers, round_int8, straight_through
from tools.train_settings import read_configuration
from tools.train_vocabulary import open_tokenizer


def start(configuration: Path) -> Run:
    return Run(read_configuration(configuration), Console(quiet=True))


def edit(configuration: Path, old: str, new: str) -> None:
    text = configuration.read_text()
    assert old in text
    configuration.write_text(text.replace(old, new, 1))


@pytest.fixture
def with_teacher(configuration: Path, llama2c_checkpoint: Path) -> Path:
    with configuration.open("a") as file:
        file.write(f'[teacher]\ncheckpoint = "{llama2c_checkpoint.name}"\nrows = 5\n')
    return configuration


def command(main: Callable[..., None]) -> Typer:
    app = Typer()
    app.command()(main)
    return app


def test_run_learns_and_transformers_loads_it(configuration: Path) -> None:
    run = start(configuration)
    before = run.held_out_loss(run.network)
    run.train()
    assert run.held_out_loss(run.network) < before - 0.2
    assert [entry["step"] for entry in run.curve] == [8, 16, 20]
    folder = configuration.parent / "model"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Ann had a ball.", return_tensors="pt").input_ids
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, run.network(ids), atol=0.01, rtol=0.01)


def test_resumed_run_equals_an_unbroken_one(configuration: Path) -> None:
    broken = start(configuration)
    for _ in range(11):
        broken.train_step()
    broken.save()
    resumed = start(configuration)
    assert resumed.step == 11
    resumed.train()
    (configuration.parent / "work" / "checkpoint.safetensors").unlink()
    unbroken = start(configuration)
    unbroken.train()
    for name, weight in unbroken.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name


def test_teacher_is_approached(configuration: Path, llama2c_checkpoint: Path) -> None:
    text = configuration.read_text().replace("steps = 20", "steps = 60")
    text += f'[teacher]\ncheckpoint = "{llama2c_checkpoint.name}"\nrows = 40\nreal_rows = 0.0\n'
    configuration.write_text(text)
    run = start(configuration)
    rows, real = run.batch()
    assert (real, rows.shape) == (0, (4, 32))
    with torch.inference_mode():
        before = float(run.loss(rows, real))
    run.train()
    with torch.inference_mode():
        after = float(run.loss(rows, real))
    assert 0 < after < 0.8 * before


def test_teacher_rows_are_sampled_once(configuration: Path, llama2c_checkpoint: Path) -> None:
    with configuration.open("a") as file:
        file.write(f'[teacher]\ncheckpoint = "{llama2c_checkpoint.name}"\nrows = 40\n')
    first = start(configuration).teacher_rows
    kept = sorted((configuration.parent / "work").glob("teacher-rows-*/*"))
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    assert torch.equal(start(configuration).teacher_rows, first)
    assert [path.stat().st_mtime_ns for path in kept] == times


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rows = 5", "rows = 5\ntemperature = 2.0"),
        ("seed = 7", "seed = 8"),
        ("row_length = 32", "row_length = 24"),
    ],
)
def test_teacher_rows_are_sampled_anew_for_other_settings(
    with_teacher: Path, old: str, new: str
) -> None:
    first = start(with_teacher).teacher_rows
    edit(with_teacher, old, new)
    second = start(with_teacher).teacher_rows
    length = min(first.shape[1], second.shape[1])
    changed = not torch.equal(first[:, :length], second[:, :length])
    assert changed or first.shape != second.shape


def test_teacher_rows_are_sampled_anew_from_another_teacher(
    with_teacher: Path, llama2c_checkpoint: Path
) -> None:
    first = start(with_teacher).teacher_rows
    data = bytearray(llama2c_checkpoint.read_bytes())
    data[28 : 28 + 320 * 64] = bytes(320 * 64)  # the embedding, and the head that it is
    llama2c_checkpoint.write_bytes(data)
    assert not torch.equal(start(with_teacher).teacher_rows, first)


def test_tokenizer_is_trained_anew_for_other_texts(configuration: Path, text_folder: Path) -> None:
    first = start(configuration).tokenizer_model
    assert start(configuration).tokenizer_model == first
    stories = text_folder / "stories.txt"
    stories.write_text(stories.read_text().replace("kite", "xylophone"))
    assert start(configuration).tokenizer_model != first


def test_tokenizer_learns_nothing_of_the_separator(configuration: Path) -> None:
    model = start(configuration).tokenizer_model
    tokenizer = open_tokenizer(model, "")
    pieces = [tokenizer.id_to_piece(index) for index in range(259, tokenizer.vocab_size())]
    assert len(pieces) == 320 - 259
    assert [piece for piece in pieces if set(piece) & set("<|>\n")] == []


def test_corrected_tokenizer_takes_the_place_of_a_wrong_one(configuration: Path) -> None:
    edit(configuration, "[model]", 'tokenizer = "texts/stories.txt"\n[model]')
    with pytest.raises(InputError, match="not a whole SentencePiece model"):
        start(configuration)
    edit(configuration, 'tokenizer = "texts/stories.txt"\n', "")
    assert start(configuration).tokenizer_model


def test_teacher_may_write_no_rows(with_teacher: Path) -> None:
    edit(with_teacher, "rows = 5", "rows = 0")
    run = start(with_teacher)
    rows, real = run.batch()
    assert real == len(rows) == 4
    assert run.loss(rows, real) > 0


def test_clock_shortens_the_schedule(configuration: Path) -> None:
    configuration.write_text(configuration.read_text() + "minutes = 0.5\n")
    run = start(configuration)
    run.seconds = 29.9999
    assert run.progress > 0.999
    run.train()
    assert run.step < 20


def test_checkpoint_of_another_configuration_is_refused(configuration: Path) -> None:
    start(configuration).save()
    configuration.write_text(configuration.read_text().replace("seed = 7", "seed = 8"))
    with pytest.raises(InputError, match="another configuration"):
        start(configuration)


def test_schedule_s_end_may_move(configuration: Path) -> None:
    run = start(configuration)
    for _ in range(3):
        run.train_step()
    run.save()
    edit(configuration, "steps = 20", "steps = 5")
    again = start(configuration)
    assert again.step == 3
    again.train()
    assert again.step == 5


def test_checkpoint_of_other_texts_is_refused(configuration: Path, text_folder: Path) -> None:
    (configuration.parent / "a.model").write_bytes(start(configuration).tokenizer_model)
    edit(configuration, "[model]", 'tokenizer = "a.model"\n[model]')
    start(configuration).save()
    assert start(configuration).step == 0
    stories = text_folder / "stories.txt"
    first, second, *others = stories.read_text().split("<|endoftext|>")
    stories.write_text("<|endoftext|>".join((second, first, *others)))  # no other tokens
    with pytest.raises(InputError, match="another configuration"):
        start(configuration)


def test_checkpoint_of_another_teacher_is_refused(
    with_teacher: Path, llama2c_checkpoint: Path
) -> None:
    edit(with_teacher, "rows = 5", "rows = 0")
    start(with_teacher).save()
    data = bytearray(llama2c_checkpoint.read_bytes())
    data[28:32] = bytes(4)
    llama2c_checkpoint.write_bytes(data)
    with pytest.raises(InputError, match="another configuration"):
        start(with_teacher)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_truncated_checkpoint_is_one_sentence(configuration: Path, share: float) -> None:
    start(configuration).save()
    checkpoint = configuration.parent / "work" / "checkpoint.safetensors"
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    result = CliRunner().invoke(command(main), [str(configuration)])
    assert result.exit_code == 2
    assert result.stderr.count("Delete it") == len(result.stderr.splitlines()) == 1


def test_held_out_loss_is_the_same_in_batches(configuration: Path) -> None:
    run = start(configuration)
    seen: list[int] = []
    hook = run.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    loss = run.held_out_loss(run.network)
    hook.remove()
    rows = run.corpus.held_out[: len(run.corpus.held_out) // 32 * 32].view(-1, 32)
    assert sum(seen) == len(rows) > max(seen) == 4
    with torch.inference_mode():
        logits = run.network(rows)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "minutes", "seconds"), [(4, 0.0, 0.0), (4, 0.5, 0.0), (9999, 0.5, 15.0)]
)
def test_bar_shows_the_share_of_what_ends_first(
    configuration: Path,
    steps: int,
    minutes: float,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit(configuration, "steps = 20", f"steps = {steps}\nminutes = {minutes}")
    run = start(configuration)
    run.step, run.seconds = 2, seconds
    take = run.train_step

    def slow_step() -> float:
        run.seconds += seconds / 3
        return take()

    monkeypatch.setattr(run, "train_step", slow_step)
    screen = io.StringIO()
    run.console = Console(file=screen, force_terminal=True, width=100)
    run.train()
    shares = [int(share) for share in re.findall(r"(\d+)%", screen.getvalue())]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (50, 100)


def test_loss_that_is_no_number_ends_the_run(configuration: Path) -> None:
    run = start(configuration)
    with torch.no_grad():
        run.network.model.norm.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="The loss after step 1 is no number"):
        run.train()
    assert not list((configuration.parent / "model").iterdir())
    assert not (configuration.parent / "work" / "checkpoint.safetensors").exists()


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("the pickle was executed",)


def test_checkpoint_is_never_unpickled(configuration: Path) -> None:
    start(configuration)
    checkpoint = configuration.parent / "work" / "checkpoint.safetensors"
    torch.save({"network": Malicious()}, checkpoint)
    with pytest.raises(InputError, match="is damaged"):
        start(configuration)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[training]", "[teachr]\n[training]", "no setting 'teachr'"),
        ("steps = 20", "steps = 0", "steps is 0"),
        ("steps = 20", "steps = 2020-01-01", "a whole number is wanted"),
        ("row_length = 32", "row_length = 1", "row_length is 1"),
        ("row_length = 32", "row_length = 32\nother_rate = nan", "other_rate is NaN"),
        ("batch_rows = 4", "batch_rows = 0", "batch_rows is 0"),
        ("evaluate_every = 8", "evaluate_every = 0", "evaluate_every is 0"),
        ("threads = 1", "threads = -1", "threads is -1"),
        ("hidden = 16", "hidden = 16.0", "a whole number is wanted"),
        ("vocabulary = 320", 'vocabulary = "320"', 'vocabulary is "320", and a whole number'),
        ("vocabulary = 320", "vocabulary = 5000", "No tokenizer of 5000 pieces"),
        ("held_out_every = 6", "held_out_every = 0", "held_out_every is 0"),
        ("held_out_every = 6", "held_out_every = 1", "held_out_every is 1, and 2 to"),
        ("held_out_every = 6", "held_out_every = 99", "too few to hold out one in 99"),
        ('["texts"]', '"texts"', 'texts is "texts", and a list is wanted'),
        ('["texts"]', "[]", "texts is empty"),
        ('["texts"]', "[3]", "not made of texts in quotes"),
        ("[model]", 'exclude = ["none.txt"]\n[model]', "exclude names .*none.txt, which does not"),
        ("[model]", 'separator = "("\n[model]', "separator is no regular expression"),
        ("[model]", 'separator = ""\n[model]', "separator is empty"),
        ("[model]", 'tokenizer = "none.bin"\n[model]', "none.bin, which does not exist"),
        ("[model]", 'tokenizer = "texts/stories.txt"\n[model]', "not a whole SentencePiece model"),
        ("[model]", 'tokenizer = "texts"\n[model]', "is a folder where a file is wanted"),
        ("[training]", "[teacher]\nrows = 4\n[training]", "checkpoint is missing"),
        ("[training]", '[teacher]\ncheckpoint = "no.bin"\n[training]', "no.bin, which does not"),
        ("[training]", '[teacher]\ncheckpoint = "texts"\n[training]', "has no config.json"),
        ('output = "model"', 'output = "texts/stories.txt/model"', "a file where a folder"),
        ('work = "work"', 'work = "texts/stories.txt"', "is there and is no folder"),
        ("seed = 7", "sead = 7", "no setting 'sead'"),
        ("steps = 20", "", "steps is missing"),
        ("heads = 4", "heads = 5", "does not split into 5 heads"),
        ("vocabulary = 320", "vocabulary = 100", "260 to 131072 is allowed"),
        ('texts = ["texts"]', 'texts = ["nowhere.txt"]', "nowhere.txt, which does not exist"),
        ("row_length = 32", "row_length = 65", "row_length = 65"),
        ("[data]", "[data", "not valid TOML"),
        ("[data]", f"x = {'[' * 3000}\n[data]", "not valid TOML"),
        ("steps = 20", f"steps = {'9' * 5000}", "not valid TOML"),
        ('output = "model"', "", "output is missing"),
    ],
)
def test_wrong_configuration_is_one_sentence(
    configuration: Path, old: str, new: str, said: str
) -> None:
    configuration.write_text(configuration.read_text().replace(old, new, 1))
    result = CliRunner().invoke(command(main), [str(configuration)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(said, result.stderr)
    assert not (configuration.parent / "model").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rows = 5", "rows = 5\ntemperature = 0", "temperature is 0"),
        ("rows = 5", "rows = -1", "rows is -1"),
        ("row_length = 32", "row_length = 40", "over the teacher's context of 32"),
        ("vocabulary = 320", "vocabulary = 330", "The tokenizer has 330 pieces"),
    ],
)
def test_wrong_teacher_is_one_sentence(with_teacher: Path, old: str, new: str, said: str) -> None:
    edit(with_teacher, old, new)
    result = CliRunner().invoke(command(main), [str(with_teacher)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert not (with_teacher.parent / "model").exists()


@pytest.mark.parametrize("name", ["texts/stories.txt", "tiny.toml"])
def test_text_that_is_not_utf8_is_one_sentence(configuration: Path, name: str) -> None:
    (configuration.parent / name).write_bytes(b"caf\xe9")
    result = CliRunner().invoke(command(main), [str(configuration)])
    assert result.exit_code == 2
    assert result.stderr.count("not valid UTF-8") == len(result.stderr.splitlines()) == 1


def test_stories_that_share_a_paragraph_are_dropped(tmp_path: Path) -> None:
    known = tmp_path / "valid.txt"
    known.write_text("Tom  ate a whole sweet apple.\n\nThe end.\n", encoding="utf-8")
    stories = [
        "Once there was Tom.\n\nTom ate a whole sweet apple.\n\nHe slept.",
        "Tom ate a whole sweet apple. And more.",
        "A cat ran far away from home.\n\nThe end.",
    ]
    assert without_overlap(stories, [known]) == stories[1:]


def test_texts_are_found_and_split(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("three\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one\n\nmore of one\ntwo", encoding="utf-8")
    (tmp_path / "c.md").write_text("no", encoding="utf-8")
    stories = read_stories(find_texts([tmp_path]), r"(?<!\n)\n(?!\n)")
    assert stories == ["one\n\nmore of one", "two", "three"]
    assert read_stories([tmp_path / "a.txt"], "(x)|(\\nt)") == ["one\n\nmore of one", "wo"]


def test_schedule_warms_up_and_falls_to_nothing() -> None:
    assert schedule(0.0, 0.1) == 0.0
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == pytest.approx(0.0)


@pytest.mark.parametrize("size", [(3, 20, 30), (2, 40, 16)])
def test_orthogonalized_singular_values_are_near_one(size: tuple[int, int, int]) -> None:
    matrices = torch.randn(size, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.3


def test_int8_rounding_is_symmetric_and_within_half_a_step() -> None:
    weight = torch.randn((50, 60), generator=torch.Generator().manual_seed(0))
    step = float(weight.abs().max()) / 127
    rounded = round_int8(weight)
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float((rounded - weight).abs().max()) <= step / 2 * 1.001
    assert torch.equal(round_int8(-weight), -rounded)
    assert torch.equal(round_int8(torch.zeros(3, 3)), torch.zeros(3, 3))


def test_straight_through_passes_gradients(configuration: Path) -> None:
    network = start(configuration).network
    parameters = straight_through(network)
    weight = network.get_parameter("model.embed_tokens.weight")
    torch.testing.assert_close(
        parameters["model.embed_tokens.weight"], round_int8(weight.detach()), atol=1e-7, rtol=0
    )
    (parameters["model.embed_tokens.weight"] * 3).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 3.0))


def test_outliers_are_clipped(configuration: Path) -> None:
    network = start(configuration).network
    weight = network.get_parameter("model.embed_tokens.weight")
    norm = network.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight[0, 0] = 100.0
        norm[0] = 100.0
    limit = 4 * float(weight.detach().std())
    clip_outliers(network, 4.0)
    assert float(weight.detach().abs().max()) == pytest.approx(limit)
    assert norm[0].item() == 100.0


def test_finished_run_takes_no_further_step(configuration: Path) -> None:
    configuration.write_text(configuration.read_text() + "minutes = 0.5\n")
    run = start(configuration)
    run.train_step()
    run.seconds = 30.0
    run.save()
    weights = {name: weight.clone() for name, weight in run.network.state_dict().items()}
    again = start(configuration)
    again.train()
    assert again.step == 1
    for name, weight in again.network.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_loss_curve_is_drawn(configuration: Path, tmp_path: Path) -> None:
    start(configuration).train()
    run = json.loads((configuration.parent / "model" / "training.json").read_text())
    told = json.dumps({**run, "teacher_held_out": 1.5}).encode()
    (axes,) = draw(parse_object(told, "run", "")).axes
    curve, teacher = axes.get_lines()
    assert np.asarray(curve.get_ydata()).tolist() == [entry["held_out"] for entry in run["curve"]]
    assert np.asarray(teacher.get_ydata()).tolist() == [1.5, 1.5]
    picture = tmp_path / "loss.svg"
    plot(configuration.parent / "model" / "training.json", picture)
    assert "million tokens seen" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "picture", "said"),
    [
        ("[]", "a.svg", "is not a JSON object"),
        ("{}", "a.svg", "curve is missing"),
        ('{"curve": []}', "a.svg", "its curve is empty"),
        ('{"curve": [3]}', "a.svg", "an object is wanted"),
        ('{"curve": [{"tokens": 1, "held_out": "2"}]}', "a.svg", "a number is wanted"),
        ('{"curve": [{"tokens": 1, "held_out": 2}]}', "a.xyz", "says no known format"),
        ('{"curve": [{"tokens": 1, "held_out": 2}]}', "no/a.svg", "does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    tmp_path: Path, content: str, picture: str, said: str
) -> None:
    training = tmp_path / "training.json"
    training.write_text(content)
    result = CliRunner().invoke(command(plot), [str(training), str(tmp_path / picture)])
    assert result.exit_code == 2
    assert result.stderr.count(said) == len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [training]
