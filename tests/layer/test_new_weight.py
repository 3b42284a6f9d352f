"""What is said where another weight is put on a LoRA layer."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, prune

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, merge_lora, remove_lora
from tests.models import adapted, mlp, with_update


def _norm(kind, size):
    norm = kind(size).eval()
    with torch.no_grad():
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            values.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("merged", [False, True])
def test_a_norm_is_fused_into_a_plain_layer_alone(merged):
    model, norm, x = adapted(mlp()).eval(), _norm(nn.BatchNorm1d, 5), torch.randn(4, 6)
    y = norm(model[0](x))
    if merged:
        merge_lora(model)
    W = model[0].weight.detach().clone()
    with pytest.raises(TypeError, match=r"plain layer alone; '0' is a LoRA layer.* \(remove_lora with merge"):
        fusion.fuse_linear_bn_eval(model[0], norm)
    assert torch.equal(model[0].weight, W)
    torch.testing.assert_close(fusion.fuse_linear_bn_eval(model[0].to_linear(), norm)(x), y)
    remove_lora(model, merge=True)
    torch.testing.assert_close(fusion.fuse_linear_bn_eval(model[0], norm)(x), y)


def test_nor_into_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 5, 2))
    with_update(apply_lora(model, LoRAConfig(r=2, target_modules=["0"]))).eval()
    norm, x = _norm(nn.BatchNorm2d, 5), torch.randn(2, 3, 4, 4)
    y = norm(model(x))
    with pytest.raises(TypeError, match="'0' is a LoRA layer"):
        fusion.fuse_conv_bn_eval(model[0], norm)
    remove_lora(model, merge=True)
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(model[0], norm)(x), y)


def _pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.remove(layer, "weight")


def _replaced(layer):
    layer.weight = nn.Parameter(torch.ones_like(layer.weight), requires_grad=False)


@pytest.mark.parametrize("change", [_pruned, _replaced])
def test_a_new_weight_of_a_merged_layer_is_named_as_the_old_one_is_kept(change):
    model = adapted(mlp())
    merge_lora(model)
    with pytest.warns(UserWarning, match=r"weight of '2' is replaced while it is merged.*unmerge_lora first"):
        change(model[2])


@pytest.mark.parametrize(
    ("plain", "x"),
    [
        (nn.Linear(6, 5), torch.randn(4, 6)),
        (nn.Embedding(7, 5), torch.tensor([1, 4, 6])),
        (nn.Conv2d(3, 5, 2), torch.randn(2, 3, 4, 4)),
    ],
    ids=["linear", "embedding", "convolution"],
)
def test_a_sum_is_not_trained_in_place_of_w(plain, x):
    model = apply_lora(nn.Sequential(plain), LoRAConfig(r=2, target_modules=["0"])).eval()
    with torch.no_grad():
        for factor in (model[0].lora_A, model[0].lora_B):
            factor.normal_()
    merge_lora(model)
    y = model(x)
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match="weight.requires_grad is True, but .* gives it no gradient"):
        again = model(x)
    assert torch.equal(again, y)
    if again.requires_grad:
        again.sum().backward()
    assert model[0].weight.grad is None


def test_any_other_new_weight_is_nothing_to_say_anything_about():
    layer, merged = (with_update(FusedLoRALinear(6, 5, r=2)) for _ in range(2))
    merged.merge()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _replaced(layer)
        merged.weight = merged.weight
        merged.load_state_dict(layer.state_dict(), assign=True)
        _pruned(layer)
