"""An optimizer that trains no update, though the model has some, is named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from fastlora import (
    LoRAConfig,
    add_adapter,
    set_adapter,
)
from tests.layer.stepped import optimizer_of, step
from tests.models import adapted, mlp


def test_an_optimizer_made_before_lora_is_named_at_its_second_step():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    adapted(model)
    step(model, optimizer)
    with pytest.warns(
        UserWarning, match=r"Adam holds other .* of '0', '2', which .* not trained\. Make"
    ) as met:
        step(model, optimizer)
    assert len(met) == 1
    step(model, optimizer)  # warnings are errors here


def test_an_optimizer_of_the_adapter_before_the_switch_is_named():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    step(model, optimizer)
    set_adapter(add_adapter(model, "other", LoRAConfig(r=2)), "other")
    with pytest.warns(UserWarning, match="SGD holds other"):
        step(model, optimizer)


def _assigned(model):
    model.load_state_dict({name: each.clone() for name, each in model.state_dict().items()}, assign=True)


def _one_assigned(model):
    for index in (0, 2):
        model[index].lora_A = nn.Parameter(model[index].lora_A.detach().clone())


def _parametrized(model):
    for index in (0, 2):
        weight_norm(model[index].adapters["default"], "lora_B")


def _converted(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("replace", [_assigned, _one_assigned, _converted, _parametrized])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_optimizer_of_parameters_that_were_replaced_since_is_named(replace, steps):
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    for _ in range(steps):
        step(model, optimizer)
    replace(model)
    before = model[2](torch.ones(5)).detach()
    if not steps:
        step(model, optimizer)  # a second optimizer may follow
    with pytest.warns(UserWarning, match=r"SGD holds other .* '0', '2', which .* not trained"):
        step(model, optimizer)
    if replace is _assigned:
        assert torch.equal(model[2](torch.ones(5)), before)
    step(model, optimizer)  # named once


@pytest.mark.parametrize("replace", [_assigned, _one_assigned, _converted, _parametrized])
def test_one_that_is_made_after_that_is_not(replace):
    model = adapted(mlp())
    step(model, optimizer_of(model))
    replace(model)
    optimizer = optimizer_of(model)
    for _ in range(3):
        step(model, optimizer)
    step(twin := copy.deepcopy(model), optimizer_of(twin))


def test_one_of_a_parametrizations_own_parameters_is_named_once_they_are_gone():
    model = adapted(mlp())
    _parametrized(model)
    optimizer = optimizer_of(model)
    step(model, optimizer)
    for index in (0, 2):
        remove_parametrizations(model[index].adapters["default"], "lora_B")
    with pytest.warns(UserWarning, match=r"SGD holds other .* '0', '2', which .* not trained"):
        step(model, optimizer)


def test_one_that_has_no_gradients_beside_one_of_the_updates_is_not():
    model, other = adapted(mlp()), nn.Linear(2, 2)
    both = [torch.optim.SGD(other.parameters(), lr=0.1), optimizer_of(model)]
    for _ in range(3):
        model(torch.ones(1, 6)).sum().backward()
        for optimizer in both:
            optimizer.step()


@pytest.mark.parametrize("first", ["frozen", "adapters"])
def test_another_optimizer_that_trains_a_and_b_beside_it_is_enough(first):
    model = mlp()
    frozen = torch.optim.SGD(model.parameters(), lr=0.1)
    both = [frozen, optimizer_of(adapted(model))]
    for _ in range(3):
        model(torch.ones(2, 6)).sum().backward()
        for optimizer in both if first == "frozen" else both[::-1]:
            optimizer.step()


def test_adapters_in_turn_under_one_optimizer_or_one_each_are_not_named():
    model = adapted(mlp())
    add_adapter(model, "other", LoRAConfig(r=2))
    optimizers = {}
    for name in ("default", "other"):
        set_adapter(model, name)
        optimizers[name] = optimizer_of(model)
    together = torch.optim.SGD([p for each in optimizers.values() for p in each.param_groups[0]["params"]])
    for name in ("default", "other") * 3:
        set_adapter(model, name)
        step(model, optimizers[name])
        step(model, together)


class Trained(nn.Module):
    """Something that is trained beside a model with LoRA."""

    def __init__(self):
        super().__init__()
        self.model, self.other = adapted(mlp()), nn.Linear(2, 2)


@pytest.mark.parametrize("leaves_out", [True, False], ids=["no parameters", "frozen parameters"])
def test_an_optimizer_with_nothing_to_train_beside_frozen_updates_says_so(leaves_out):
    model = adapted(mlp())
    for parameter in model.parameters():  # as PEFT's prepare_model_for_kbit_training, called after apply_lora
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([{"params": [] if leaves_out else list(model.parameters())}])
    with pytest.warns(UserWarning, match=r"AdamW trains nothing: A and B of '0', '2' .*kbit_training") as met:
        step(model, optimizer)
    assert len(met) == 1
    step(model, optimizer)


def test_updates_that_are_frozen_on_purpose_are_not_named():
    net = Trained()
    net.model.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    other.requires_grad_(False)  # trained in turn: it has its gradients
    torch.optim.SGD(other.parameters(), lr=0.1).step()
