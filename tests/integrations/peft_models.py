"""Small PEFT models whose B is never zero."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fastlora.integrations.peft import forward_counts
from fastlora.measuring.inputs import Inputs


class Subclass(torch.Tensor):
    """A tensor that is not exactly a torch.Tensor."""


def mlp() -> nn.Sequential:
    """6 -> 5 -> 3 with ReLU; LoRA goes to "0" and "2"."""
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def peft_model(base: nn.Module | None = None, **options: Any) -> nn.Module:
    """PEFT's model over the MLP, or over `base`, of rank 4 (or as the options say)."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": ["0", "2"], "init_lora_weights": False, **options}
    )
    return get_peft_model(mlp() if base is None else base, config)


def lora_layers(model: nn.Module) -> list[Linear]:
    """PEFT's LoRA layers, FastLinear among them."""
    return [module for module in model.modules() if isinstance(module, Linear)]


def layer_of(ops: Inputs, **options: Any) -> Linear:
    """A stock PEFT layer that holds the operands' W, b, A, B and s."""
    (N, K), r = ops.W.shape, ops.A.shape[0]
    net = nn.Sequential(nn.Linear(K, N, ops.b is not None, dtype=ops.W.dtype))
    config = LoraConfig(r=r, lora_alpha=ops.s * r, target_modules=["0"], **options)
    layer = get_peft_model(net, config, autocast_adapter_dtype=False).base_model.model[0]
    layer.lora_A.to(ops.A.dtype), layer.lora_B.to(ops.A.dtype)
    with torch.no_grad():
        layer.base_layer.weight.copy_(ops.W)
        layer.lora_A["default"].weight.copy_(ops.A)
        layer.lora_B["default"].weight.copy_(ops.B)
        if ops.b is not None:
            layer.base_layer.bias.copy_(ops.b)
    return layer


def results(layer: Linear, ops: Inputs) -> dict[str, Tensor]:
    """y, dx, dA and dB of a layer that holds the operands, for their x and dy."""
    layer.zero_grad()
    x = ops.x.clone().requires_grad_()
    y = layer(x)
    y.backward(ops.dy.to(y.dtype))
    adapter = [module["default"].weight.grad for module in (layer.lora_A, layer.lora_B)]
    return {"y": y.detach(), "dx": x.grad, "dA": adapter[0], "dB": adapter[1]}


def twins(**options: Any) -> tuple[nn.Module, nn.Module]:
    """The same PEFT model twice, for one to be changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about the options that a test wants
        model = peft_model(**options)
    return model, copy.deepcopy(model)


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and every gradient, from a fixed seed."""
    torch.manual_seed(3)
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.float().square().sum().backward() if y.requires_grad else None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **gradients}


def assert_stock(ours: dict[str, Tensor], theirs: dict[str, Tensor], fused: nn.Module, why: str) -> None:
    """Fail unless two outcomes of `run` are equal bit for bit, and each forward gave a reason like `why`."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value is ours[name] is None or torch.equal(ours[name], value), name
    ways = forward_counts(fused)
    assert ways
    assert all(why in way for way in ways), ways


class Mixed(nn.Module):
    """Every kind of layer that is not swapped, and one that is."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(6, 6)
        self.subclass = nn.modules.linear.NonDynamicallyQuantizableLinear(6, 6)
        self.transposed = Conv1D(6, 6)  # after it PEFT's config says fan_in_fan_out
        self.table = nn.Embedding(5, 6)
        self.replaced = nn.Linear(6, 6)
        self.untouched = nn.Linear(6, 6)

    def forward(self, tokens):
        x = self.table(tokens)
        for name in ("plain", "transposed", "subclass", "replaced", "untouched"):
            x = getattr(self, name)(x)
        return x
