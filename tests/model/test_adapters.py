"""Several adapters on one model: one in use, switched without touching W."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    active_adapter,
    adapter_names,
    add_adapter,
    apply_lora,
    delete_adapter,
    lora_disabled,
    lora_layers,
    merge_lora,
    parameter_report,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from fastlora.layer import new_adapter
from tests.models import Block, TiedLM, adapted, mlp
from tests.several_adapters import alone, filled, same_state, two


def tokens():
    return torch.arange(7)


def test_each_adapter_computes_what_a_model_with_it_alone_does():
    model = two()
    x = torch.randn(4, 6)
    expected = {name: alone(model, name)(x) for name in ("default", "fr")}
    assert not torch.equal(expected["default"], expected["fr"])
    for name in ("fr", "default", "fr"):
        set_adapter(model, name)
        assert active_adapter(model) == name
        assert torch.equal(model(x), expected[name])


def test_adding_an_adapter_changes_neither_the_function_nor_which_is_in_use():
    model = adapted(mlp())
    x = torch.randn(4, 6)
    before = model(x)
    assert add_adapter(model, "fr", LoRAConfig(r=3)) is model
    assert adapter_names(model) == ("default", "fr")
    assert torch.equal(model(x), before)


def test_a_switch_copies_nothing_and_keeps_every_parameter_object():
    model = two()
    pointers = {id(p): p.data_ptr() for p in model.parameters()}
    versions = {id(p): p._version for p in model.parameters()}
    for name in ("fr", "default"):
        set_adapter(model, name)
        assert {id(p): p.data_ptr() for p in model.parameters()} == pointers
        assert {id(p): p._version for p in model.parameters()} == versions


def test_layers_an_adapter_has_no_part_in_apply_w_alone():
    model = two(first={"target_modules": ["0"]}, second={"target_modules": ["2"]})
    x = torch.randn(4, 6)
    plain = remove_lora(copy.deepcopy(model))
    set_adapter(model, "fr")
    assert torch.equal(model[0](x), plain[0](x))
    assert not torch.equal(model(x), plain(x))
    assert torch.equal(model(x), alone(model, "fr")(x))
    set_adapter(model, "default")
    assert torch.equal(model(x), alone(model, "default")(x))
    with lora_disabled(model):
        assert torch.equal(model(x), plain(x))


def test_a_plain_layer_that_a_further_adapter_targets_is_made_a_lora_layer():
    model = adapted(Block(), target_modules=["q_proj"])
    x = torch.randn(3, 4)
    before = model(x)
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["v_proj", "q_proj"]))
    filled(model, "fr")
    assert [name for name, _ in lora_layers(model)] == ["attn.q_proj", "attn.v_proj"]
    assert torch.equal(model(x), before)
    set_adapter(model, "fr")
    assert torch.equal(model(x), alone(model, "fr")(x))


def test_deleting_an_adapter_makes_layers_plain_that_only_it_had():
    model = two(Block, first={"target_modules": ["q_proj"]})
    x = torch.randn(3, 4)
    before = model(x)
    assert delete_adapter(model, "fr") is model
    assert [name for name, _ in lora_layers(model)] == ["attn.q_proj"]
    assert type(model.attn["v_proj"]) is nn.Linear
    assert adapter_names(model) == ("default",)
    assert torch.equal(model(x), before)
    assert set(model.state_dict()) == set(adapted(Block(), target_modules=["q_proj"]).state_dict())


def test_the_default_adapter_can_be_deleted_once_another_is_in_use():
    model = two()
    set_adapter(model, "fr")
    delete_adapter(model, "default")
    assert adapter_names(model) == ("fr",)
    other = two()
    set_adapter(other, "fr")
    delete_adapter(other, "default")
    other.load_state_dict(model.state_dict())
    assert same_state(other.state_dict(), model.state_dict())


def test_further_layers_join_the_adapter_in_use():
    model = adapted(Block(), target_modules=["q_proj"])
    add_adapter(model, "fr", LoRAConfig(target_modules=["q_proj"]))
    set_adapter(model, "fr")
    apply_lora(model, LoRAConfig(target_modules=["v_proj"]))
    assert [layer.adapter for _, layer in lora_layers(model)] == ["fr", "fr"]


@pytest.mark.parametrize("merge", [False, True])
def test_removing_lora_leaves_no_trace_of_any_adapter(merge):
    model = two()
    set_adapter(model, "fr")
    x = torch.randn(4, 6)
    expected = {"weight", "bias"}
    plain = remove_lora(model, merge=merge)
    for linear in (plain[0], plain[2]):
        assert type(linear) is nn.Linear
        assert set(linear.state_dict()) == expected
        assert not hasattr(linear, "adapter")
    assert plain(x).shape == (4, 3)


def test_merging_takes_the_adapter_in_use_and_no_switch_is_made_meanwhile():
    model = two()
    set_adapter(model, "fr")
    total = model[0].effective_weight()
    weight = model[0].weight.clone()
    merge_lora(model)
    assert torch.equal(model[0].weight, total)
    with pytest.raises(ValueError, match=r"must be unmerged to switch adapters; merged: '0', '2'"):
        set_adapter(model, "default")
    assert active_adapter(model) == "fr"
    unmerge_lora(model)
    assert torch.equal(model[0].weight, weight)


def test_the_report_counts_every_adapter_and_no_base_parameter_twice():
    model = two()
    base = sum(p.numel() for p in mlp().parameters())
    report = parameter_report(model)
    assert report.base == base
    assert report.lora == (2 + 3) * (6 + 5) + (2 + 3) * (5 + 3)
    assert report.trainable == 2 * (6 + 5) + 2 * (5 + 3)


def test_a_tied_language_model_takes_several_adapters():
    model = two(TiedLM)
    expected = {name: alone(model, name)(tokens()) for name in ("default", "fr")}
    for name, wanted in expected.items():
        set_adapter(model, name)
        assert torch.equal(model(tokens()), wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_switching_between_adapters_of_one_rank_and_scaling_needs_no_new_compilation():
    model = two(second={"r": 2, "alpha": None})
    x = torch.randn(4, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for name in ("fr", "default", "fr"):
            set_adapter(model, name)
            assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("default", ValueError, "the model has 'default' already"),
        ("", ValueError, "adapter name must be letters"),
        ("a.b", ValueError, "adapter name must be letters"),
        ("../up", ValueError, "adapter name must be letters"),
        ("-x", ValueError, "adapter name must be letters"),
        ("items", ValueError, "must not be an attribute of nn.ModuleDict; got 'items'"),
        ("training", ValueError, "must not be an attribute of nn.ModuleDict"),
        (3, TypeError, "adapter name must be letters.*got 3"),
    ],
)
def test_an_unsound_name_is_refused(name, error, message):
    model = adapted(mlp())
    with pytest.raises(error, match=message):
        add_adapter(model, name, LoRAConfig())
    assert adapter_names(model) == ("default",)


def test_what_cannot_be_done_says_why_and_changes_nothing():
    model = two()
    before = model.state_dict()
    with pytest.raises(ValueError, match="adapter must be one of default, fr; got 'de'"):
        set_adapter(model, "de")
    with pytest.raises(ValueError, match="'default' must not be in use to be deleted"):
        delete_adapter(model, "default")
    with pytest.raises(ValueError, match="adapter must be one of default, fr; got 'de'"):
        delete_adapter(model, "de")
    with pytest.raises(TypeError, match=r"config must be a fastlora.LoRAConfig"):
        add_adapter(model, "de", {})
    with pytest.raises(ValueError, match="modules_to_save must name modules without LoRA layers; '2'"):
        add_adapter(model, "de", LoRAConfig(modules_to_save=["2"]))
    with pytest.raises(ValueError, match="model must have LoRA layers"):
        add_adapter(mlp(), "de", LoRAConfig())
    assert same_state(model.state_dict(), before)
    assert adapter_names(model) == ("default", "fr")


def test_no_pattern_means_what_a_layer_holds_its_adapters_in():
    model = adapted(mlp(), target_modules=["0"])
    for names in (["default"], ["adapters"], r".*default"):
        with pytest.raises(ValueError, match="must match a module; it matches none"):
            add_adapter(model, "fr", LoRAConfig(target_modules=names))


def test_parameters_that_fsdp1_has_flattened_are_not_switched():
    model = two()
    model[2].adapters["fr"].lora_B._fsdp_flattened = True  # as it marks them
    with pytest.raises(TypeError, match=r"A and B of layer '2' must be parameters of their own"):
        set_adapter(model, "fr")
    assert active_adapter(model) == "default"


@pytest.mark.parametrize(
    "change",
    [
        lambda adapters, other: adapters.__setitem__("default", other),
        lambda adapters, other: adapters.update({"default": other}),
        lambda adapters, other: adapters.pop("default"),
        lambda adapters, other: adapters.clear(),
    ],
)
def test_an_adapter_is_not_put_or_taken_behind_the_layers_back(change):
    model, x = two(), torch.randn(4, 6)
    y, layer = model(x), model[2]
    with pytest.raises(TypeError, match=r"must be changed by add_adapter, .*on using what was here before"):
        change(layer.adapters, copy.deepcopy(layer.adapters["fr"]))
    assert layer.adapters["default"] is layer.active
    assert torch.equal(copy.deepcopy(model)(x), y)


def test_an_adapter_that_cannot_be_made_leaves_the_model_as_it_was(monkeypatch):
    model = adapted(Block(), target_modules=["q_proj"])
    weight = model.attn["v_proj"].weight

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    weight.requires_grad_(True)
    monkeypatch.setattr(new_adapter, "start", fail)
    with pytest.raises(torch.OutOfMemoryError):
        add_adapter(model, "fr", LoRAConfig(target_modules=["q_proj", "v_proj"]))
    assert adapter_names(model) == ("default",)
    assert type(model.attn["v_proj"]) is nn.Linear
    assert weight.requires_grad
