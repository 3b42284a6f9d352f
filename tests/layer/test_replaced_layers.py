"""A LoRA layer is not replaced by one without its update without a word."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, remove_lora
from tests.models import adapted, mlp


class Other(nn.Linear):
    """A layer as a program makes it that converts a model."""


def _convert(model):
    """As torchao's float8 training does: each nn.Linear, by isinstance, with its own weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            other = Other(module.in_features, module.out_features)
            other.weight = module.weight
            model.set_submodule(name, other)


def test_a_program_that_converts_each_linear_layer_is_named():
    model = adapted(mlp())
    with pytest.warns(UserWarning, match="the update is lost") as met:
        _convert(model)
    assert [str(each.message).partition(",")[0] for each in met] == [
        f"'{name}' of Sequential is replaced by Other" for name in (0, 2)
    ]
    assert {each.filename for each in met} == {__file__}


CHANGES = {
    "assigned": lambda model: model[0].__setattr__("0", nn.Identity()),
    "added": lambda model: model[0].add_module("0", nn.Identity()),
    "a parent of it": lambda model: model.__setattr__("0", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_so_is_any_other_that_takes_such_a_layer_away(change):
    model = nn.Sequential(adapted(mlp()), nn.ReLU())
    with pytest.warns(UserWarning, match="is replaced by Identity, which has no LoRA: the update is lost"):
        change(model)


def test_what_keeps_the_update_or_takes_it_away_on_purpose_is_not():
    model = nn.Sequential(adapted(mlp()), nn.Sequential(nn.Conv2d(3, 3, 1)))
    apply_lora(model, LoRAConfig(r=2, target_modules=["1.0"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[0][2] = copy.deepcopy(model[0][2])
        model[0][0] = model[0][0].to_linear()
        model[1][0] = model[1][0].to_linear()
        model[0] = nn.Sequential(*model[0])
        model[0][2] = torch.compile(model[0][2], backend="eager")
        remove_lora(model, merge=True)
        _convert(model)
