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
from tests.models import Block, Shared, TiedLM, adapted, mlp


def snapshot(model):
    """All that a refused change must leave as it was."""
    modules = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    tensors = [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]
    switches = [(layer.enabled, layer.merged) for _, layer in lora_layers(model)]
    return modules, tensors, switches


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class InjectedError(RuntimeError):
    pass


def failing_at(call, function):
    """`function`, but the call of this number (from 1) raises."""
    calls = iter(range(1, 100))

    def wrapped(*args, **kwargs):
        if next(calls) == call:
            raise InjectedError
        return function(*args, **kwargs)

    return wrapped


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
        f"{name}.{letter}" for name, _ in lora_layers(model) for letter in ("lora_A", "lora_B")
    }
    frozen = {name: p.clone() for name, p in model.named_parameters() if "lora" not in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(6)).sum().backward()
    optimizer.step()
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())
    assert all(dict(model.named_parameters())[name].grad is None for name in frozen)


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
    make = failing_at(2, FusedLoRALinear.reset_adapter)
    monkeypatch.setattr(FusedLoRALinear, "reset_adapter", make)
    with pytest.raises(InjectedError):
        apply_lora(model, LoRAConfig(r=2))
    assert snapshot(model) == before
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_layers_inside_torch_compile_of_their_own_are_refused():
    model = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.ReLU())
    with pytest.raises(TypeError, match=r"target '0\._orig_mod' must be compiled afterwards"):
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
    with pytest.raises(TypeError, match=r"config must be a fastlora.LoRAConfig; got"):
        apply_lora(mlp(), argument)


@pytest.mark.parametrize("merge", [False, True])
def test_remove_puts_plain_layers_with_the_same_parameters_back(merge):
    model = adapted(Block())
    model.eval()
    W = {name: layer.weight.clone() for name, layer in lora_layers(model)}
    effective = {name: layer.effective_weight() for name, layer in lora_layers(model)}
    parameters = {name: id(layer.weight) for name, layer in lora_layers(model)}
    assert remove_lora(model, merge=merge) is model
    plain = {name: module for name, module in model.named_modules() if name in W}
    for name, module in plain.items():
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, (effective if merge else W)[name])
        assert id(module.weight) == parameters[name]
        assert not module.training
    assert not trainable(model)
    unfreeze(model)
    assert trainable(model) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("merge", [False, True])
def test_remove_gives_the_same_whether_merged_or_disabled_before(merge):
    model = adapted(mlp())
    expected = remove_lora(copy.deepcopy(model), merge=merge).state_dict()
    weight = model[0].weight
    merge_lora(model)
    set_lora_enabled(model, False)
    remove_lora(model, merge=merge)
    assert model[0].weight is weight
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_remove_from_a_single_layer_gives_the_plain_layer():
    layer = apply_lora(nn.Linear(4, 3), LoRAConfig(r=2))
    assert type(remove_lora(layer)) is nn.Linear


def test_a_layer_with_a_replaced_forward_is_named_before_anything_is_removed():
    model = adapted(mlp())
    merge_lora(model)
    model[2].forward = lambda x: x
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"layer '2' must keep its class's forward"):
        remove_lora(model)
    assert snapshot(model) == before


def test_a_merge_that_fails_while_removing_keeps_the_function_of_the_model(monkeypatch):
    model = adapted(mlp())
    merged = remove_lora(copy.deepcopy(model), merge=True)
    monkeypatch.setattr(FusedLoRALinear, "to_linear", failing_at(4, FusedLoRALinear.to_linear))
    with pytest.raises(InjectedError):
        remove_lora(model, merge=True)
    assert torch.equal(model[0].weight, merged[0].weight)
    assert type(model[0]) is nn.Linear
    assert isinstance(model[2], FusedLoRALinear)
    assert torch.equal(model[2].effective_weight(), merged[2].weight)


def test_merge_and_unmerge_go_over_all_layers():
    model = adapted(Block())
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 4)
    merge_lora(model)
    assert all(layer.merged for _, layer in lora_layers(model))
    assert torch.equal(model(x), remove_lora(copy.deepcopy(model), merge=True)(x))
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_merge_that_fails_leaves_every_weight_as_it_was(monkeypatch):
    model = adapted(mlp())
    weights = [layer.weight.clone() for _, layer in lora_layers(model)]
    monkeypatch.setattr(FusedLoRALinear, "merge", failing_at(2, FusedLoRALinear.merge))
    with pytest.raises(InjectedError):
        merge_lora(model)
    for weight, (_, layer) in zip(weights, lora_layers(model), strict=True):
        assert torch.equal(layer.weight, weight)
        assert not layer.merged


@pytest.mark.parametrize("change", [merge_lora, lambda model: remove_lora(model, merge=True)])
@pytest.mark.parametrize("by", ["parameter", "data"])
def test_merging_a_tied_weight_is_refused_by_name(change, by):
    model = TiedLM()
    if by == "data":
        model.lm_head.weight = nn.Parameter(torch.empty(7, 4))
        model.lm_head.weight.data = model.embed.weight.data
    adapted(model, target_modules=["q_proj", "lm_head"])
    before, values = snapshot(model), [p.clone() for p in model.parameters()]
    message = r"lm_head.weight must belong to this layer alone.* shared by embed.weight, lm_head.weight"
    with pytest.raises(ValueError, match=message):
        change(model)
    assert snapshot(model) == before
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


def test_a_tied_weight_stays_tied_with_lora_on_top_of_it():
    model = adapted(TiedLM(), target_modules=["lm_head"])
    assert model.lm_head.weight is model.embed.weight
    model(torch.arange(5)).sum().backward()
    assert model.lm_head.lora_B.grad is not None
    unfreeze(model)
    assert not model.embed.weight.requires_grad
    remove_lora(model)
    assert model.lm_head.weight is model.embed.weight


def test_two_layers_with_one_weight_are_not_merged():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    adapted(model)
    with pytest.raises(ValueError, match=r"0.weight must belong .* shared by 0.weight, 1.weight"):
        merge_lora(model)


def test_a_shared_module_has_a_weight_of_its_own_and_merges():
    model = adapted(Shared())
    effective = model.first.effective_weight()
    merge_lora(model)
    assert torch.equal(model.again[0].weight, effective)


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
        freeze,
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
