"""LoRA over a whole model."""

import copy

import pytest
import torch
from torch import nn

import fastlora
from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    freeze,
    lora_disabled,
    lora_layers,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    unfreeze,
    unmerge_lora,
)
from fastlora.layer import new_adapter
from tests.failures import InjectedError, failing_at, snapshot
from tests.models import Block, Shared, TiedLM, adapted, mlp, trainable


def test_apply_replaces_in_place_and_starts_from_the_same_function():
    model = Block()
    x = torch.randn(3, 4)
    before = model(x)
    assert apply_lora(model, LoRAConfig(r=2)) is model
    assert [name for name, _ in lora_layers(model)] == [
        "attn.q_proj",
        "attn.k_proj",
        "attn.v_proj",
        "mlp.0",
        "mlp.2",
    ]
    assert torch.equal(model(x), before)


def test_apply_to_a_linear_layer_gives_the_new_layer():
    linear = nn.Linear(4, 3)
    layer = apply_lora(linear, LoRAConfig(r=2))
    assert isinstance(layer, FusedLoRALinear)
    assert layer.weight is linear.weight


def test_apply_passes_every_option_on():
    config = LoRAConfig(
        r=4,
        alpha=2,
        dropout=0.1,
        rslora=True,
        init="kaiming",
        adapter_dtype=torch.float64,
        rank_pattern={"2": 3},
        alpha_pattern={"0": 6},
    )
    layers = dict(lora_layers(apply_lora(mlp(), config)))
    found = [(at.r, at.alpha, at.dropout, at.rslora, at.init, at.lora_A.dtype) for at in layers.values()]
    assert found == [
        (4, 6, 0.1, True, "kaiming", torch.float64),
        (3, 2, 0.1, True, "kaiming", torch.float64),
    ]


def test_alpha_left_out_is_each_layers_own_rank():
    layers = dict(lora_layers(apply_lora(mlp(), LoRAConfig(r=4, rank_pattern={"2": 3}))))
    assert [layer.scaling for layer in layers.values()] == [1, 1]


def test_apply_freezes_all_but_the_updates():
    model = adapted(TiedLM())
    assert trainable(model) == {
        f"{name}.adapters.default.{letter}"
        for name, _ in lora_layers(model)
        for letter in ("lora_A", "lora_B")
    }
    frozen = {name: p.clone() for name, p in model.named_parameters() if "lora" not in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(6)).sum().backward()
    optimizer.step()
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())
    assert all(dict(model.named_parameters())[name].grad is None for name in frozen)


# A step without a backward pass is what the warning of training_warnings.py is about.
@pytest.mark.filterwarnings("ignore:SGD is to train:UserWarning")
def test_a_gradient_left_from_before_does_not_move_a_frozen_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model(torch.randn(3, 4)).square().sum().backward()
    before = {name: p.clone() for name, p in model.named_parameters()}
    apply_lora(model, LoRAConfig(r=2))
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_shared_module_is_replaced_once_in_both_places():
    model = adapted(Shared())
    assert model.first is model.again[0]
    assert [name for name, _ in lora_layers(model)] == ["first", "last"]
    remove_lora(model)
    assert type(model.first) is nn.Linear
    assert model.first is model.again[0]


def test_a_second_config_adapts_further_layers():
    model = apply_lora(Block(), LoRAConfig(r=2, target_modules=["q_proj"]))
    first = dict(lora_layers(model))["attn.q_proj"]
    apply_lora(model, LoRAConfig(r=3))
    layers = dict(lora_layers(model))
    assert layers["attn.q_proj"] is first
    assert [layer.r for layer in layers.values()] == [2, 3, 3, 3, 3]
    assert first.lora_A.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["0", "mising"]},
        {"target_modules": ["0", "1"]},
        {"rank_pattern": {"7": 2}},
        {"exclude_modules": ["0", "2"]},
    ],
)
def test_a_refused_config_changes_nothing(options):
    model = mlp()
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)):
        apply_lora(model, LoRAConfig(**options))
    assert snapshot(model) == before


def test_a_layer_that_cannot_be_made_leaves_the_model_as_it_was(monkeypatch):
    model = mlp()
    model(torch.randn(2, 6)).sum().backward()
    before, grads = snapshot(model), [p.grad for p in model.parameters()]
    make = failing_at(2, new_adapter.start)
    monkeypatch.setattr(new_adapter, "start", make)
    with pytest.raises(InjectedError):
        apply_lora(model, LoRAConfig(r=2))
    assert snapshot(model) == before
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_layers_inside_torch_compile_of_their_own_are_refused():
    model = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.ReLU())
    with pytest.raises(TypeError, match=r"target '0' must be compiled afterwards"):
        apply_lora(model, LoRAConfig())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_model_compiled_before_sees_the_update():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 6)
    before = compiled(x)
    adapted(model)
    assert not torch.equal(compiled(x), before)
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("argument", [LoRAConfig, None, {"r": 8}, 8])
def test_apply_takes_a_config(argument):
    with pytest.raises(TypeError, match=r"config must be a fastlora.LoRAConfig or a peft.LoraConfig; got"):
        apply_lora(mlp(), argument)


def test_a_model_on_meta_can_be_adapted_merged_and_stripped():
    with torch.device("meta"):
        model = mlp()
    apply_lora(model, LoRAConfig(r=2))
    merge_lora(model)
    assert {p.device.type for p in remove_lora(model, merge=True).parameters()} == {"meta"}


def test_switching_off_gives_exactly_the_base_model():
    base = Block()
    model = adapted(copy.deepcopy(base))
    x = torch.randn(3, 4)
    set_lora_enabled(model, False)
    assert torch.equal(model(x), base(x))
    set_lora_enabled(model, True)
    assert not torch.equal(model(x), base(x))


def test_disabled_for_a_block_each_layer_comes_back_to_its_own_state():
    model = adapted(mlp())
    model[0].enabled = False
    with lora_disabled(model):
        assert not model[2].enabled
        with lora_disabled(model):
            assert not model[2].enabled
        assert not model[2].enabled
    assert (model[0].enabled, model[2].enabled) == (False, True)
    with pytest.raises(InjectedError), lora_disabled(model):
        raise InjectedError
    assert (model[0].enabled, model[2].enabled) == (False, True)


def test_freeze_and_unfreeze_choose_what_is_trained():
    model = adapted(TiedLM(), target_modules=["q_proj", "v_proj"])
    updates = trainable(model)
    unfreeze(model)
    base = {f"{name}.{kind}" for name, _ in lora_layers(model) for kind in ("weight", "bias")}
    assert trainable(model) == set(dict(model.named_parameters())) - base
    model(torch.arange(5)).sum().backward()
    assert all(dict(model.named_parameters())[name].grad is None for name in base)
    freeze(model)
    assert trainable(model) == updates
    assert model.embed.weight.grad is None


def test_unfreeze_leaves_integer_parameters():
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_parameter("steps", nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False))
    apply_lora(model, LoRAConfig(r=2))
    unfreeze(model)
    assert not model.steps.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        remove_lora,
        merge_lora,
        unmerge_lora,
        lambda model: set_lora_enabled(model, False),
        lambda model: lora_disabled(model).__enter__(),
    ],
)
def test_a_model_without_lora_is_a_clear_error(change):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"model must have LoRA layers; this Sequential has none"):
        change(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "name", ["apply_lora", "remove_lora", "merge_lora", "unmerge_lora", "freeze", "unfreeze", "lora_layers"]
)
def test_what_is_no_module_is_refused(name):
    arguments = [LoRAConfig()] if name == "apply_lora" else []
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got str"):
        getattr(fastlora, name)("model", *arguments)


@pytest.mark.parametrize("call", [set_lora_enabled, remove_lora])
def test_a_switch_that_is_no_bool_is_refused(call):
    with pytest.raises(TypeError, match="must be True or False; got 'off'"):
        call(adapted(mlp()), "off")
