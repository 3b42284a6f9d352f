"""A W that another LoRA layer shares is not changed under it, whichever model that layer is of."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    initialize,
    lora_layers,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from tests.models import with_update

MESSAGE = r"weight of .* must belong to this layer alone.* shared by another LoRA layer, .*own first"


def _net(like=None):
    """A net with LoRA; its weights are those of another, where one is given."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    if like is not None:
        model[2].weight = like[2].weight
    return with_update(apply_lora(model, LoRAConfig(r=2)))


def test_one_of_two_layers_around_one_weight_is_not_merged():
    linear = nn.Linear(6, 5)
    first, second = (with_update(FusedLoRALinear.from_linear(linear, r=2)) for _ in range(2))
    with pytest.raises(ValueError, match=MESSAGE):
        first.merge()
    assert not first.merged
    del second
    first.merge()


def _merged_away(model):
    remove_lora(model, merge=True)


def _started_anew(model):
    for _, layer in lora_layers(model):
        layer.reset_adapter()
    initialize(model, "olora")


@pytest.mark.parametrize("change", [merge_lora, _merged_away, _started_anew])
def test_a_model_is_not_changed_under_another_that_shares_a_weight(change):
    model = _net()
    other = _net(like=model)
    x = torch.randn(3, 5)
    before = other[2](x)
    with pytest.raises(ValueError, match=MESSAGE):
        change(model)
    assert torch.equal(other[2](x), before)
    assert not any(layer.merged for layer in (model[0], model[2]))


def test_copies_removed_layers_and_garbage_do_not_count():
    model, x = _net(), torch.randn(3, 6)
    copies, old = copy.deepcopy(model), model[2]
    remove_lora(model)
    with_update(apply_lora(model, LoRAConfig(r=2)))
    circle = [_net(like=model)]
    circle.append(circle)
    del circle
    expected = model(x)
    merge_lora(model)
    merge_lora(copies)
    torch.testing.assert_close(model(x), expected)
    assert old.weight is model[2].weight


@pytest.mark.parametrize("change", [merge_lora, _merged_away, _started_anew])
def test_a_weight_in_shared_memory_keeps_its_values_for_other_processes(change):
    """A view of that memory sees what another process does."""
    model, x = _net().share_memory(), torch.randn(3, 6)
    elsewhere, W, y = model[0].weight.detach(), model[0].weight.detach().clone(), model(x)
    change(model)
    assert torch.equal(elsewhere, W)
    assert not torch.equal(model[0].weight, W)
    if change is not _started_anew:
        torch.testing.assert_close(model(x), y)
    if change is merge_lora:
        unmerge_lora(model)
        assert model[0].weight.data_ptr() == elsewhere.data_ptr()
        assert torch.equal(model(x), y)


def test_a_merged_weight_that_is_shared_afterwards_stays_merged_for_other_processes():
    model = _net()
    W = model[0].weight.detach().clone()
    merge_lora(model)
    model.share_memory()
    elsewhere, merged = model[0].weight.detach(), model[0].weight.detach().clone()
    unmerge_lora(model)
    assert torch.equal(elsewhere, merged)
    assert torch.equal(model[0].weight, W)


def test_rows_of_tokens_in_shared_memory_are_merged_for_this_process_alone():
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5))
    with_update(apply_lora(model, LoRAConfig(r=2, trainable_token_indices={"0": [1, 4]})))
    with torch.no_grad():
        model[0].token_adapter.trainable_tokens_delta.normal_()
    model.share_memory()
    elsewhere, W = model[0].weight.detach(), model[0].weight.detach().clone()
    remove_lora(model, merge=True)
    assert torch.equal(elsewhere, W)
    assert not torch.equal(model[0].weight, W)
