"""A weighted sum of adapters as one new adapter."""

import math

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, adapter_names, add_adapter, combine_adapters, lora_layers, set_adapter
from fastlora.layer.adapter import adapters_of
from fastlora.measuring.errors import assert_within_budget, relative_error
from tests.models import adapted, mlp


def several(dtype=torch.float64, **options):
    """ "default" (r 2) and "fr" (r 3, rsLoRA) on both layers, "de" (r 1) on the first; none is zero."""
    model = adapted(mlp(), adapter_dtype=dtype, **options)
    add_adapter(model, "fr", LoRAConfig(r=3, alpha=5, rslora=True, adapter_dtype=dtype))
    add_adapter(model, "de", LoRAConfig(r=1, target_modules=["0"], adapter_dtype=dtype))
    for _, layer in lora_layers(model):
        for _, B, _ in adapters_of(layer).values():
            nn.init.normal_(B)
    return model


def update(layer, name):
    """s B A [N, K] in fp64."""
    A, B, options = adapters_of(layer)[name]
    return options.scaling * (B.detach().double() @ A.detach().double())


def once_rounded(layer, name, weight, dtype):
    """The same, weighted, with the scaled B rounded to a dtype."""
    A, B, options = adapters_of(layer)[name]
    return (B.detach().double() * (weight * options.scaling)).to(dtype).double() @ A.detach().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_stacking_gives_the_weighted_sum_of_the_updates(dtype):
    model = several(dtype)
    weights = {"default": 0.7, "fr": -1.3, "de": 0.25}
    combine_adapters(model, weights, "mix")
    for index, ranks in ((0, 6), (2, 5)):
        layer = model[index]
        A, B, options = adapters_of(layer)["mix"]
        assert (options.r, options.scaling, A.dtype) == (ranks, 1, dtype)
        assert (A.shape[0], B.shape[1]) == (ranks, ranks)
        parts = {name: w for name, w in weights.items() if name in adapters_of(layer)}
        truth = sum(w * update(layer, name) for name, w in parts.items())
        rounded = sum(once_rounded(layer, name, w, dtype) for name, w in parts.items())
        assert_within_budget("update", update(layer, "mix"), rounded, truth)


def test_stacking_with_powers_of_two_is_exact_to_the_bit():
    model = adapted(mlp(), alpha=4)
    add_adapter(model, "fr", LoRAConfig(r=4, alpha=2))
    nn.init.normal_(adapters_of(model[0])["fr"][1])
    combine_adapters(model, {"default": 0.5, "fr": 4.0}, "mix")
    own = adapters_of(model[0])
    assert torch.equal(own["mix"][0], torch.cat([own["default"][0], own["fr"][0]]))
    assert torch.equal(own["mix"][1], torch.cat([own["default"][1], 2 * own["fr"][1]], dim=1))


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_a_smaller_rank_gets_the_best_approximation_there_is(r):
    model = several()
    weights = {"default": 1.0, "fr": 0.5}
    combine_adapters(model, weights, "mix", r=r)
    for _, layer in lora_layers(model):
        truth = sum(w * update(layer, name) for name, w in weights.items())
        U, S, Vt = torch.linalg.svd(truth)
        rank = min(r, *truth.shape)
        best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        assert adapters_of(layer)["mix"][2].r == rank
        assert_within_budget("update", update(layer, "mix"), best.float().double(), best)


def test_a_rank_as_large_as_the_sum_loses_nothing():
    one, other = several(), several()
    other.load_state_dict(one.state_dict())
    combine_adapters(one, {"default": 1.0, "fr": 0.5}, "mix")
    combine_adapters(other, {"default": 1.0, "fr": 0.5}, "mix", r=9)
    assert torch.equal(adapters_of(one[0])["mix"][1], adapters_of(other[0])["mix"][1])


def test_the_combined_adapter_is_one_like_any_other():
    model = several(torch.float32, dropout=0.5)
    x = torch.randn(4, 6)
    combine_adapters(model, {"default": 2.0}, "mix")
    assert adapter_names(model) == ("default", "fr", "de", "mix")
    set_adapter(model, "mix")
    assert model[0].dropout == 0
    assert model[0].lora_A.requires_grad
    model(x).square().sum().backward()
    assert model[0].lora_A.grad.any()


def test_the_sources_stay_as_they_are():
    model = several()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    combine_adapters(model, {"default": 0.3, "fr": 0.5}, "mix", r=2)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert relative_error(update(model[0], "mix"), update(model[0], "default")) > 0


@pytest.mark.parametrize(
    ("weights", "name", "options", "error", "message"),
    [
        ({}, "mix", {}, ValueError, "weights must map at least one adapter"),
        ({"it": 1.0}, "mix", {}, ValueError, r"weights must name adapters of the model, default, .*got 'it'"),
        ({"fr": "1"}, "mix", {}, TypeError, r"weights\['fr'\] must be a finite number; got '1'"),
        ({"fr": math.nan}, "mix", {}, ValueError, r"weights\['fr'\] must be a finite number; got nan"),
        ({"fr": 1.0}, "fr", {}, ValueError, "the model has 'fr' already"),
        ({"fr": 1.0}, "a/b", {}, ValueError, "adapter name must be letters"),
        ({"fr": 1.0}, "mix", {"r": 0}, ValueError, "r must be an int >= 1; got 0"),
    ],
)
def test_what_cannot_be_combined_is_named(weights, name, options, error, message):
    model = several()
    with pytest.raises(error, match=message):
        combine_adapters(model, weights, name, **options)
    assert adapter_names(model) == ("default", "fr", "de")


def test_values_that_are_not_finite_are_not_combined():
    model = several()
    nn.init.constant_(adapters_of(model[2])["fr"][1], math.inf)
    with pytest.raises(ValueError, match="those of layer '2' are not"):
        combine_adapters(model, {"default": 1.0, "fr": 1.0}, "mix")
    assert "mix" not in adapter_names(model)
