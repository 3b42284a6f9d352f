"""An update that an optimizer is to train and that gets no gradient is named, once."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    load_pretrained,
    lora_disabled,
    lora_layers,
    merge_lora,
    save_pretrained,
    set_lora_enabled,
)
from fastlora.layer.training_warnings import _layers
from tests.layer.stepped import optimizer_of, step
from tests.models import adapted, mlp


class Reads(nn.Module):
    """A head whose weight is read and which is never called, as TRL's loss does with lm_head."""

    def __init__(self):
        super().__init__()
        self.body, self.lm_head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.body(x) @ self.lm_head.weight.T


def test_a_layer_that_is_read_and_not_called_is_named_at_the_first_step():
    model = adapted(Reads())
    optimizer = optimizer_of(model)
    with pytest.warns(
        UserWarning, match=r"SGD is to train .*'lm_head' \(not used by the loss\), which"
    ) as met:
        step(model, optimizer)
    assert len(met) == 1
    assert "'body'" not in str(met[0].message)
    assert len(str(met[0].message)) < 1000
    step(model, optimizer)  # warnings are errors here


def test_training_while_disabled_is_named():
    model = adapted(mlp())
    set_lora_enabled(model, False)
    with pytest.warns(UserWarning, match=r"'0' \(disabled\), '2' \(disabled\)"):
        step(model, optimizer_of(model))


def test_training_while_merged_is_named_in_the_forward_pass_and_not_again():
    model = adapted(mlp())
    merge_lora(model)
    optimizer = optimizer_of(model)
    with pytest.warns(UserWarning, match="a merged FusedLoRALinear is one plain linear") as met:
        step(model, optimizer)
    assert len(met) == 2
    step(model, optimizer)  # warnings are errors here


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_watched_too(copied):
    model = copied(adapted(Reads()))
    with pytest.warns(UserWarning, match="'lm_head'"):
        step(model, optimizer_of(model))


def test_loaded_layers_and_layers_of_ones_own_are_watched(tmp_path):
    save_pretrained(adapted(Reads()), tmp_path)
    loaded = load_pretrained(Reads(), tmp_path)
    with pytest.warns(UserWarning, match="'lm_head'"):
        step(loaded, optimizer_of(loaded))
    own = nn.ModuleList([FusedLoRALinear(4, 3)])
    own.forward = own[0].forward
    other = FusedLoRALinear(5, 7)
    optimizer = torch.optim.SGD([own[0].lora_A, own[0].lora_B, other.lora_A], lr=0.1)
    with pytest.warns(UserWarning, match="updates of a layer 5 -> 7"):
        step(own, optimizer)


def test_what_is_frozen_or_trained_is_not_named():
    model = adapted(Reads())
    model.lm_head.lora_A.requires_grad_(False)
    model.lm_head.lora_B.requires_grad_(False)
    step(model, optimizer_of(model))
    whole = adapted(mlp())
    groups = [{"params": [layer.lora_A]} for _, layer in lora_layers(whole)]
    step(whole, torch.optim.Adam([*groups, *({"params": [layer.lora_B]} for _, layer in lora_layers(whole))]))


def test_an_expert_that_missed_a_later_step_is_not_named():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    step(model, optimizer)
    optimizer.zero_grad()
    model[0](torch.ones(2, 6)).sum().backward()
    optimizer.step()


def test_each_optimizer_is_told_of_its_own_parameters():
    model = adapted(Reads())
    body = torch.optim.SGD([model.body.lora_A, model.body.lora_B], lr=0.1)
    step(model, body)
    head = torch.optim.Adam([model.lm_head.lora_A, model.lm_head.lora_B])
    with pytest.warns(UserWarning, match="Adam is to train"):
        head.step()


def test_a_closures_gradients_are_looked_at_when_they_are_there():
    model = adapted(Reads())
    optimizer = optimizer_of(model, torch.optim.LBFGS)
    whole = adapted(mlp())
    sound = optimizer_of(whole, torch.optim.LBFGS)

    def closure(net, opt, width):
        def run():
            opt.zero_grad()
            loss = net(torch.ones(2, width)).square().sum()
            loss.backward()
            return loss

        return run

    for _ in range(2):
        sound.step(closure(whole, sound, 6))
    optimizer.step(closure(model, optimizer, 4))
    with pytest.warns(UserWarning, match="'lm_head'"):
        optimizer.step(closure(model, optimizer, 4))


def test_a_step_that_only_sets_up_the_state_does_not_hide_it():
    model = adapted(Reads())
    optimizer = optimizer_of(model, torch.optim.Adam)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0  # as torch.distributed.checkpoint does it
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.warns(UserWarning, match="'lm_head'"):
        step(model, optimizer)


def test_a_merge_in_the_middle_of_training_is_named_once():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    step(model, optimizer)
    merge_lora(model)
    with torch.no_grad():
        model(torch.ones(1, 6))
    with pytest.warns(UserWarning, match="a merged FusedLoRALinear"):
        step(model, optimizer)
    step(model, optimizer)


def test_a_forward_without_the_update_beside_one_with_it_is_not_named():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    step(model, optimizer)
    with lora_disabled(model):
        model(torch.ones(1, 6))
    step(model, optimizer)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_step_stays_whole():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    model(torch.ones(2, 6)).sum().backward()
    before = model[0].lora_A.clone()
    torch.compile(optimizer.step, backend="eager")()
    assert not torch.equal(model[0].lora_A, before)


def test_watching_keeps_no_layer_alive():
    gc.collect()
    before = len(_layers)
    model = adapted(mlp())
    assert len(_layers) == before + 2
    del model
    gc.collect()
    assert len(_layers) == before


def test_removing_lora_leaves_nothing_of_the_name():
    model = apply_lora(mlp(), LoRAConfig())
    assert model[2].applied_as == "2"
    assert "applied_as" not in vars(model[2].to_linear())
