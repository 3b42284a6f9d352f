"""Models with several adapters, none of them zero, for the tests that switch, save and delete them."""

import copy

import torch
from torch import nn

from fastlora import FusedLoRALinear, LoRAConfig, add_adapter, lora_layers, remove_lora
from fastlora.layer.adapter import adapters_of
from tests.models import adapted, mlp


def filled(model, name):
    """Fill B of an adapter with random numbers."""
    for _, layer in lora_layers(model):
        if name in adapters_of(layer):
            nn.init.normal_(adapters_of(layer)[name][1])
    return model


def two(make=mlp, first=None, second=None):
    """A model with the adapters "default", in use, and "fr", of rank 3; neither is zero."""
    model = adapted(make(), **(first or {}))
    add_adapter(model, "fr", LoRAConfig(**{"r": 3, "alpha": 5, **(second or {})}))
    return filled(model, "fr")


def alone(model, name):
    """The same model with this adapter only, as `apply_lora` would have made it."""
    plain = remove_lora(copy.deepcopy(model))
    parts = {path: adapters_of(layer) for path, layer in lora_layers(model)}
    only = {path: own[name] for path, own in parts.items() if name in own}
    for path, (A, B, options) in only.items():
        linear = plain.get_submodule(path)
        layer = FusedLoRALinear.from_linear(linear, **options._asdict(), adapter_dtype=A.dtype)
        with torch.no_grad():
            layer.lora_A.copy_(A)
            layer.lora_B.copy_(B)
        plain.set_submodule(path, layer)
    return plain


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
