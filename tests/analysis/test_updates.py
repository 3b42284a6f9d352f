"""Measures of an update, against numpy written out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, add_adapter, apply_lora, initialize, lora_layers
from fastlora.analysis import amplification, effective_rank, update_report
from fastlora.layer.adapter import adapters_of
from fastlora.measuring.errors import assert_within_budget
from tests.models import adapted, mlp


def by_hand(W, s, B, A):
    """‖ΔW‖, ‖ΔW‖/‖W‖, effective rank and amplification of the whole ΔW [N, K], in numpy and fp64."""
    delta = s * B @ A
    U, S, Vt = np.linalg.svd(delta, full_matrices=False)
    r = min(A.shape[0], *delta.shape)
    shares = S[:r] / S[:r].sum()
    projected = U[:, :r].T @ W @ Vt[:r].T
    return (
        np.sqrt((delta**2).sum()),
        np.sqrt((delta**2).sum()) / np.sqrt((W**2).sum()),
        np.exp(-(shares * np.log(shares)).sum()),
        np.sqrt((delta**2).sum()) / np.sqrt((projected**2).sum()),
    )


def assert_measured(measured, layer, name="default"):
    A, B, options = adapters_of(layer)[name]
    A, B, W = (t.detach().double().numpy() for t in (A, B, layer.weight))
    truth = by_hand(W, options.scaling, B, A)
    single = by_hand(*(np.float32(value) for value in (W, options.scaling, B, A)))
    found = (measured.norm, measured.relative_norm, measured.effective_rank, measured.amplification)
    # W and ΔW cancel where their directions are nearly orthogonal, so a hundred steps of fp32's rounding.
    for ours, torchs, exact in zip(found, single, truth, strict=True):
        scalars = (torch.tensor(float(value), dtype=torch.float64) for value in (ours, torchs, exact))
        eps = torch.finfo(layer.weight.dtype).eps
        assert_within_budget("measure", *scalars, extra=layer.weight.numel() * eps)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_layer_is_measured_as_by_hand(dtype, rslora):
    net = nn.Sequential(nn.Linear(23, 17), nn.ReLU(), nn.Linear(17, 3)).to(dtype)
    model = adapted(net, r=4, alpha=6.0, rslora=rslora)
    report = update_report(model)
    assert [(each.name, each.shape, each.r) for each in report.layers] == [
        ("0", (17, 23), 4),
        ("2", (3, 17), 4),
    ]
    for each, index in zip(report.layers, (0, 2), strict=True):
        assert_measured(each, model[index])


def test_an_adapter_that_is_not_in_use_is_measured_by_its_name():
    model = adapted(nn.Sequential(nn.Linear(23, 17), nn.Linear(17, 5)), r=2)
    add_adapter(model, "fr", LoRAConfig(r=3, alpha=1.0, target_modules=["1"]))
    nn.init.normal_(adapters_of(model[1])["fr"][1])
    report = update_report(model, "fr")
    assert report.adapter == "fr"
    assert [each.name for each in report.layers] == ["1"]
    assert_measured(report.layers[0], model[1], "fr")


def test_a_merged_layer_is_measured_beside_its_own_w():
    model = adapted(mlp())
    before = update_report(model)
    for _, layer in lora_layers(model):
        layer.merge()
    assert update_report(model) == before


def test_an_update_started_from_w_is_measured_by_what_it_changed():
    net = nn.Linear(23, 17).double()
    W = net.weight.detach().clone().numpy()
    layer = apply_lora(net, LoRAConfig(r=3, alpha=5.0))
    initialize(layer, "pissa")
    assert math.isnan(update_report(layer).layers[0].amplification)
    with torch.no_grad():
        layer.lora_A += 0.1 * torch.randn_like(layer.lora_A)
        layer.lora_B += 0.1 * torch.randn_like(layer.lora_B)
    found = update_report(layer).layers[0]
    A, B, A0, B0 = (t.detach().numpy() for t in (layer.lora_A, layer.lora_B, layer.start_A, layer.start_B))
    truth = by_hand(W, 5 / 3, np.concatenate([B, -B0], axis=1), np.concatenate([A, A0]))
    measures = (found.norm, found.relative_norm, found.effective_rank, found.amplification)
    assert np.allclose(measures, truth, rtol=W.size * np.finfo(float).eps, atol=0)


def test_an_update_of_zero_changes_nothing_and_amplifies_no_direction():
    found = update_report(apply_lora(nn.Linear(5, 4), LoRAConfig(r=2))).layers[0]
    assert (found.norm, found.relative_norm, found.effective_rank) == (0, 0, 0)
    assert math.isnan(found.amplification)


def test_directions_of_rounding_do_not_count():
    # Two equal rows of A: the second singular value of B A is rounding, its direction arbitrary.
    A = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    B = torch.tensor([[1.0, 1.0], [0, 0]])
    W = torch.tensor([[0.5, 3.0, 0], [7.0, 0, 9.0]])
    assert amplification(W, B, A) == pytest.approx(4, rel=torch.finfo(W.dtype).eps)


def test_a_direction_that_w_lacks_is_amplified_without_bound():
    assert (
        amplification(torch.diag(torch.tensor([1.0, 0])), torch.eye(2)[:, 1:], torch.eye(2)[1:]) == math.inf
    )


def test_the_effective_rank_lies_between_one_and_the_rank():
    eps = torch.finfo(torch.float64).eps
    assert effective_rank(torch.ones(5)) == pytest.approx(5, rel=4 * eps)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == 1
    assert effective_rank(torch.zeros(3)) == 0
    # Shares 3/4 and 1/4: exp(3/4 ln 4/3 + 1/4 ln 4).
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx((4 / 3) ** 0.75 * 4**0.25, rel=4 * eps)


def test_the_report_is_a_table():
    lines = str(update_report(adapted(mlp()))).splitlines()
    assert lines[0].split() == ["layer", "shape", "r", "|ΔW|", "|ΔW|/|W|", "eff.", "rank", "amplification"]
    assert lines[2].split()[:5] == ["0", "6", "->", "5", "2"]
    assert len({len(line) for line in lines}) == 1


def not_finite():
    model = adapted(mlp())
    nn.init.constant_(model[2].lora_A, math.nan)
    return model


@pytest.mark.parametrize(
    ("model", "adapter", "message"),
    [
        (mlp, None, "model must have LoRA layers"),
        (lambda: adapted(mlp()), "fr", "adapter must be one of the model's .*got 'fr'"),
        (not_finite, None, "A must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_named(model, adapter, message):
    with pytest.raises(ValueError, match=message):
        update_report(model(), adapter)
