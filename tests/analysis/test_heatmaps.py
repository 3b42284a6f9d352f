"""Heat maps are drawn, whatever the numbers are; how they look, people judge."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fastlora import LoRAConfig, apply_lora
from fastlora.analysis import draw_similarity, draw_updates, heatmaps, update_report
from tests.models import Block, adapted, mlp


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "model",
    [
        lambda: adapted(nn.ModuleList([Block(), Block()])),
        lambda: adapted(nn.Linear(4, 3)),
        lambda: apply_lora(mlp(), LoRAConfig(r=2)),
    ],
    ids=["blocks", "one layer", "updates of zero"],
)
def test_updates_are_drawn(tmp_path, model):
    figure = draw_updates(update_report(model()), tmp_path / "updates.png")
    assert isinstance(figure, Figure)
    assert is_png(tmp_path / "updates.png")


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_similarities_are_drawn(tmp_path, layers):
    alike = {f"layers.{i}": torch.rand(i + 1, 4) for i in range(layers)}
    assert isinstance(draw_similarity(alike, tmp_path / "alike"), Figure)
    assert is_png(tmp_path / "alike")


@pytest.mark.parametrize("layers", [0, 37])
def test_as_many_similarities_as_can_be_told_apart(tmp_path, layers):
    with pytest.raises(ValueError, match=f"1 to 36 layers to be drawn; got {layers}"):
        draw_similarity(dict.fromkeys(map(str, range(layers)), torch.rand(1, 1)), tmp_path / "alike")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layers.3.attn.q_proj", (3, "layers.*.attn.q_proj")),
        ("h.12.experts.0.w1", (12, "h.*.experts.0.w1")),
        ("0", (0, "*")),
        ("fc1", (-1, "fc1")),
        ("", (-1, "the model")),
    ],
)
def test_a_layers_first_number_is_its_block(name, place):
    assert heatmaps._place(name) == place


def test_without_a_path_nothing_is_written_and_the_figure_can_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = (draw_updates(update_report(adapted(mlp()))), draw_similarity({"a": torch.rand(2, 2)}))
    assert not list(tmp_path.iterdir())
    figures[0].savefig(tmp_path / "own.svg")
    assert (tmp_path / "own.svg").stat().st_size


def test_a_name_is_no_formula(tmp_path):
    """Matplotlib takes what stands between dollars as mathematics, and fails where it is none."""
    model = adapted(nn.ModuleDict({r"$\nope{$": nn.Linear(3, 2)}))
    draw_updates(update_report(model), tmp_path / "updates.png")
    draw_similarity({r"$\nope{$": torch.rand(1, 1)}, tmp_path / "alike.png")
