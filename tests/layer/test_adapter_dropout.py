"""An adapter's dropout, for code that knows torch's nn.Dropout alone."""

import pickle

import pytest
import torch
from torch import nn

from fastlora import FusedLoRALinear, LoRAConfig, adapter_batch, apply_lora, explain
from fastlora.layer.adapter import Adapter
from tests.experts import modules
from tests.grouped import attention, hidden
from tests.models import with_update
from tests.packed import net


def _adapted(model):
    return with_update(apply_lora(model, LoRAConfig(r=3, dropout=0.5, target_modules=["0"])))


def _linear():
    model, x = _adapted(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.9))), torch.randn(7, 6)
    return model, lambda: model(x)


def _conv():
    model, x = _adapted(nn.Sequential(nn.Conv2d(3, 4, 1))), torch.randn(2, 3, 4, 4)
    return model, lambda: model(x)


def _packed():
    model, x = _adapted(net()), torch.randn(7, 64)
    return model, lambda: model(x)


def _group():
    model, x = attention(dropout=0.5), hidden()
    return model, lambda: model(x)


def _experts():
    model, _ = modules.module()
    modules.with_lora(model, dropout=0.5)
    given = modules.arguments()
    return model, lambda: model["experts"](*given)


def _rows():
    model, x = _adapted(nn.Sequential(nn.Linear(6, 5))), torch.randn(2, 6)

    def run():
        with adapter_batch(model, ["default", None]):
            return model(x)

    return model, run


@pytest.mark.parametrize("turn_off", ["p", "eval", "replace"])
@pytest.mark.parametrize("kind", [_linear, _conv, _packed, _group, _experts, _rows])
def test_code_that_turns_every_dropout_off_turns_ours_off(kind, turn_off):
    model, run = kind()
    still = model.eval() and run()
    dropped = model.train() and run()
    assert not torch.equal(dropped, still)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.Dropout):
                if turn_off == "p":
                    module.p = 0.0
                elif turn_off == "eval":
                    module.eval()
                else:
                    setattr(parent, name, nn.Identity())
    assert model.training
    assert torch.equal(run(), still)


def test_it_is_read_set_shown_and_explained_as_before():
    layer = FusedLoRALinear(6, 5, r=2)
    assert layer.dropout == 0.0
    assert not layer.adapters["default"]._modules
    layer.dropout = 0.25
    assert layer.dropout == layer.adapters["default"].options.dropout == 0.25
    assert "dropout=0.25" in repr(layer)
    assert "lora_dropout" not in "".join(layer.state_dict())
    explain((4, 6), layer)
    layer.dropout = 1.0
    with pytest.raises(ValueError, match="dropout must be"):
        layer(torch.randn(2, 6))


def test_pickles_that_hold_it_as_an_attribute_are_read():
    layer = FusedLoRALinear(6, 5, r=2, dropout=0.25)
    adapter = layer.adapters["default"]
    state = adapter.__getstate__() | {"dropout": 0.25, "_modules": {}}
    old = Adapter.__new__(Adapter)
    old.__setstate__(state)
    assert old.dropout == old.dropout_now(True) == 0.25
    assert pickle.loads(pickle.dumps(layer)).dropout == 0.25
