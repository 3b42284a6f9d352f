"""Modules whose own names look like LoRA's: their files read back."""

import copy

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, load_adapter, load_pretrained, save_adapter, save_pretrained
from tests.models import with_update


class OwnLoRA(nn.Module):
    """A head that somebody wrote as a low-rank map."""

    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.lora_B(self.lora_A(x))


class Around(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.base_layer = module

    def forward(self, x):
        return self.base_layer(x)


def inside(*names):
    """Linear layers in each other's place, by a name with dots: "lora_A.0"."""
    module = nn.Linear(4, 4)
    for name in reversed(names):
        outer = Chain()
        outer.add_module(name, module)
        module = outer
    return module


class Chain(nn.Module):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def named(name, module):
    model = nn.Sequential()
    model.add_module("proj", nn.Linear(4, 4))
    model.add_module(name, module)
    return model


CASES = {
    "a head called lora_head": ("lora_head", nn.Linear(4, 4), ["proj"]),
    "a head called lora_A": ("lora_A", nn.Linear(4, 4), ["proj"]),
    "a head called lora_B without bias": ("lora_B", nn.Linear(4, 4, bias=False), ["proj"]),
    "a head called lora_embedding_A": ("lora_embedding_A", nn.Linear(4, 4), ["proj"]),
    "a head with base_layer inside": ("head", Around(nn.Linear(4, 4)), ["proj"]),
    "a head with lora_A and lora_B inside": ("head", OwnLoRA(), ["proj"]),
    "a head with lora_A.0 inside": ("head", inside("lora_A", "0"), ["proj"]),
    "a head with kohya's names inside": ("head", inside("lora_down"), ["proj"]),
    "a head with diffusers' names inside": ("head", inside("lora", "down"), ["proj"]),
    "an adapted layer called lora_A": ("lora_A", nn.Linear(4, 4), ["lora_A"]),
    "an adapted layer inside lora_B": ("lora_B", Around(nn.Linear(4, 4)), ["base_layer"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_whose_names_look_like_loras_reads_back(tmp_path, case):
    name, module, targets = CASES[case]
    base = named(name, copy.deepcopy(module))
    saved = [name] if targets == ["proj"] else ["proj"]
    model = apply_lora(copy.deepcopy(base), LoRAConfig(r=2, target_modules=targets, modules_to_save=saved))
    with_update(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
    x = torch.randn(3, 4)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained(copy.deepcopy(base), tmp_path)(x), model(x))
    save_adapter(model, tmp_path / "one.safetensors")
    assert torch.equal(load_adapter(base, tmp_path / "one.safetensors")(x), model(x))
