"""A small net, the same with updates started from W, and one training step of it."""

import copy

import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, initialize, lora_layers

STARTS = ("pissa", "pissa-randomized", "olora")
DTYPES = (torch.bfloat16, torch.float32)


def wide_mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(23, 17), nn.ReLU(), nn.Linear(17, 11)).to(dtype)


def started(start, dtype=torch.float32, **options):
    """(The plain net, the same with LoRA of rank 3 started from W, x)."""
    base = wide_mlp(dtype)
    model = apply_lora(copy.deepcopy(base), LoRAConfig(**{"r": 3, "alpha": 5.0, **options}))
    initialize(model, start)
    return base, model, torch.randn(6, 23, dtype=dtype)


def trained(model, x):
    """A and B moved by a real step, and by as much again at random."""
    model(x).square().sum().backward()
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for parameter in (layer.lora_A, layer.lora_B):
                parameter -= 0.05 * parameter.grad.sign() + 0.05 * torch.randn_like(parameter)
    return model


def rescaled(model):
    """The true function of a net, in fp64."""
    return copy.deepcopy(model).double()
