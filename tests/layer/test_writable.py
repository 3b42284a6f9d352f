"""Tensors that cannot be written are found, and named, before anything is changed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from fastlora import (
    LoRAConfig,
    add_adapter,
    apply_lora,
    hot_swap,
    initialize,
    load_adapter,
    load_pretrained,
    lora_layers,
    merge_lora,
    remove_lora,
    save_adapter,
    save_pretrained,
    set_adapter,
    unfreeze,
    unmerge_lora,
)
from fastlora.layer.writable import check_writable
from tests.models import adapted, mlp, with_update
from tests.several_adapters import two


class Doubled(nn.Module):
    def forward(self, tensor):
        return 2 * tensor


def owner(layer, slot):
    """The module that holds this parameter of a LoRA layer."""
    return layer.active if slot.startswith("lora") else layer


def parametrized(module, slot):
    parametrize.register_parametrization(owner(module, slot), slot, Doubled())


def pruned(module, slot):
    prune.random_unstructured(owner(module, slot), slot, amount=1)


def expanded(module, slot):
    old = getattr(module, slot)
    first = old.detach()[:1].clone()
    setattr(module, slot, nn.Parameter(first.expand(old.shape), requires_grad=old.requires_grad))


def inferred(module, slot):
    old = getattr(module, slot)
    with torch.inference_mode():
        setattr(module, slot, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))


BY = {
    "parametrized": (parametrized, "must be a parameter of its own"),
    "pruned": (pruned, "must be a parameter of its own"),
    "expanded": (expanded, "must have memory of its own for each entry"),
    "inferred": (inferred, "must be made outside torch.inference_mode"),
}
ALL = list(BY)


def bits(model):
    """Names, types, bits and flags of all that the model holds."""
    held = [*model.named_parameters(), *model.named_buffers()]
    tensors = [(name, each.requires_grad, each.detach().clone().numpy().tobytes()) for name, each in held]
    modules = [(name, type(module)) for name, module in model.named_modules()]
    switches = [(layer.merged, layer.enabled, layer.adapter) for _, layer in lora_layers(model)]
    return modules, tensors, switches


def assert_refused(change, model, slot, layer, message):
    before = bits(model)
    with pytest.raises(ValueError, match=f"{slot} of {layer} {message}"):
        change(model)
    assert bits(model) == before


def started():
    return apply_lora(mlp(), LoRAConfig(r=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    save_pretrained(adapted(mlp()), path / "all")
    save_adapter(adapted(mlp()), path / "file")
    return path


@pytest.mark.parametrize("by", ALL)
def test_a_merge_into_such_a_weight_is_refused_by_name(by):
    spoil, message = BY[by]
    model = adapted(mlp())
    spoil(model[2], "weight")
    assert_refused(merge_lora, model, "weight", "layer '2'", message)
    assert_refused(lambda model: remove_lora(model, merge=True), model, "weight", "layer '2'", message)
    assert_refused(lambda model: model[2].merge(), model, "weight", "the layer", message)


@pytest.mark.parametrize("by", ["parametrized", "pruned"])
def test_a_layer_whose_weight_is_computed_does_not_become_plain(by):
    spoil, message = BY[by]
    for slot in ("weight", "bias"):
        model = adapted(mlp())
        spoil(model[2], slot)
        assert_refused(remove_lora, model, slot, "layer '2'", message)
        for merge in (False, True):
            change = lambda model, merge=merge: model[2].to_linear(merge)  # noqa: E731
            assert_refused(change, model, slot, "the layer", message)


@pytest.mark.filterwarnings("ignore:weight of '2' is replaced while it is merged")
@pytest.mark.parametrize("by", ALL)
def test_a_merged_weight_that_became_such_stays_merged(by):
    spoil, message = BY[by]
    model = adapted(mlp())
    merge_lora(model)
    spoil(model[2], "weight")
    for change in (unmerge_lora, remove_lora):
        assert_refused(change, model, "weight", "layer '2'", message)
    assert_refused(lambda model: model[2].unmerge(), model, "weight", "the layer", message)


@pytest.mark.parametrize("by", ALL)
@pytest.mark.parametrize("slot", ["weight", "lora_A", "lora_B"])
def test_a_start_from_such_tensors_is_refused_by_name(by, slot):
    spoil, message = BY[by]
    model = started()
    spoil(model[2], slot)
    assert_refused(lambda model: initialize(model, "olora"), model, slot, "layer '2'", message)


@pytest.mark.parametrize("by", ALL)
def test_such_updates_are_not_loaded_into(by, folder):
    spoil, message = BY[by]
    model = adapted(mlp())
    spoil(model[2], "lora_B")
    for change in (
        lambda model: load_pretrained(model, folder / "all"),
        lambda model: load_adapter(model, folder / "file"),
        lambda model: hot_swap(model, folder / "all"),
    ):
        assert_refused(change, model, "lora_B", "layer '2'", message)
    assert_refused(lambda model: model[2].reset_adapter(), model, "lora_B", "the layer", message)


@pytest.mark.parametrize("by", ["parametrized", "pruned"])
def test_an_update_that_is_computed_is_not_exchanged(by):
    spoil, message = BY[by]
    model = two()
    spoil(model[2], "lora_B")
    assert_refused(lambda model: set_adapter(model, "fr"), model, "lora_B", "layer '2'", message)


@pytest.mark.parametrize("kind", ["expanded", "inferred"])
def test_a_buffer_that_cannot_be_written_is_found_before_anything_is_loaded(kind, tmp_path):
    def net():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    config = LoRAConfig(r=2, target_modules=["0"], modules_to_save=["1"])
    save_pretrained(with_update(apply_lora(net(), config)), tmp_path)
    model = net()
    if kind == "expanded":
        model[1].running_mean = torch.zeros(1).expand(4)
    else:
        with torch.inference_mode():
            model[1].running_mean = torch.zeros(4)
    before = bits(model)
    with pytest.raises(ValueError, match=r"'1\.running_mean' must"):
        load_pretrained(model, tmp_path)
    assert bits(model) == before


def test_what_was_made_in_inference_mode_is_not_trained():
    with torch.inference_mode():
        head = nn.Linear(5, 3)
    model = mlp()
    model[2] = head
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    before = bits(model)
    config = LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"])
    for change in (lambda: apply_lora(model, config), lambda: unfreeze(model)):
        with pytest.raises(ValueError, match=r"2\.weight must be made outside torch.inference_mode"):
            change()
        assert bits(model) == before


OTHER_STRIDES = {
    "turned": torch.Tensor.t,
    "every other": lambda each: each[:, ::2],
    "one row, with any stride": lambda each: each.as_strided((1, 6), (0, 1)),
    "none at all": lambda each: each[:1, :1].expand(0, 6),
}


@pytest.mark.parametrize("kind", OTHER_STRIDES)
def test_other_strides_can_be_written(kind):
    check_writable(OTHER_STRIDES[kind](torch.zeros(4, 6)), "W")


def test_windows_that_share_entries_cannot():
    with pytest.raises(ValueError, match=r"W must have memory of its own for each entry"):
        check_writable(torch.zeros(8).unfold(0, 4, 2), "W")


def test_no_module_is_in_training_mode_in_a_model_that_is_not(folder):
    model = adapted(mlp(), target_modules=["0"]).eval()
    add_adapter(model, "de", LoRAConfig(r=1))
    load_pretrained(model, folder / "all", name="es")
    set_adapter(model, "es")
    assert not any(module.training for module in model.modules())
    loaded = load_pretrained(mlp().eval(), folder / "all")
    assert not any(module.training for module in loaded.modules())
    remove_lora(model)
    assert not any(module.training for module in model.modules())
