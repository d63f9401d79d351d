"""Training: what a run leaves, that it can be resumed, and what it refuses."""

from __future__ import annotations

import json
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


def start(configuration: Path) -> Run:
    return Run(read_configuration(configuration), Console(quiet=True))


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
        ("seed = 7", "sead = 7", "no setting 'sead'"),
        ("steps = 20", "", "steps is missing"),
        ("heads = 4", "heads = 5", "does not split into 5 heads"),
        ("vocabulary = 320", "vocabulary = 100", "260 to 131072 is allowed"),
        ('texts = ["texts"]', 'texts = ["nowhere.txt"]', "nowhere.txt, which does not exist"),
        ("row_length = 32", "row_length = 65", "row_length = 65"),
        ("[data]", "[data", "not valid TOML"),
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
    with pytest.raises(InputError, match=said):
        start(configuration)
    assert not (configuration.parent / "model").exists()


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
