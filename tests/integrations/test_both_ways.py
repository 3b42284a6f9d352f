"""LoRA of ours and of PEFT on one layer: refused by name, whichever comes first."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, lora_layers
from fastlora.integrations.peft import accelerate_peft, register
from tests.models import adapted, mlp


def test_a_model_of_peft_is_refused():
    model = get_peft_model(mlp(), LoraConfig(target_modules=["0"], modules_to_save=["2"]))
    before = list(model.state_dict())
    for config in (LoRAConfig(), LoRAConfig(target_modules=["default"]), LoRAConfig(target_modules=["0"])):
        with pytest.raises(TypeError, match=r"no layers of PEFT.*'base_model.model.0', 'base_model.model.2'"):
            apply_lora(model, config)
    accelerate_peft(model)
    with pytest.raises(TypeError, match="no layers of PEFT"):
        apply_lora(model, LoRAConfig())
    assert list(model.state_dict()) == before
    assert not list(lora_layers(model))


def test_what_peft_gives_back_takes_lora():
    model = get_peft_model(mlp(), LoraConfig(target_modules=["0"])).merge_and_unload()
    assert len(list(lora_layers(apply_lora(model, LoRAConfig())))) == 2


@pytest.mark.parametrize("changed", [lambda config: config, register], ids=["plain", "registered"])
def test_peft_around_our_layers_is_refused(changed):
    model = adapted(mlp())
    with pytest.raises(TypeError, match=r"PEFT cannot adapt a FusedLoRALinear.*remove_lora"):
        get_peft_model(model, changed(LoraConfig(target_modules=["0"])))
    assert type(model[0]) is FusedLoRALinear


def test_peft_beside_our_layers_is_not():
    model = adapted(mlp(), target_modules=["0"])
    both = get_peft_model(model, LoraConfig(target_modules=["2"]))
    assert both(torch.ones(1, 6)).shape == (1, 3)


def test_nobody_else_sees_a_base_layer():
    layer = FusedLoRALinear(3, 2)
    assert not hasattr(layer, "base_layer")
    assert getattr(layer, "base_layer", None) is None
    assert isinstance(layer, nn.Linear)
