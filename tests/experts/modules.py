"""A module of experts in every layout that Transformers' hook has, with LoRA, and its results."""

import copy

import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from fastlora import LoRAConfig, apply_lora, lora_layers
from fastlora.formula.oracle import effective_weight
from tests.experts.mixtures import with_update

E, K, INNER, T, TOP = 4, 10, 6, 9, 2


def experts_class(**marks):
    """A class of experts as Transformers', with its own plain forward."""

    @use_experts_implementation(**marks)
    class Experts(nn.Module):
        def __init__(self, config):
            super().__init__()
            turned, gated = marks.get("is_transposed"), marks.get("has_gate", True)
            first, wide = ("gate_up_proj", 2 * INNER) if gated else ("up_proj", INNER)
            for name, N, inner in ((first, wide, K), ("down_proj", K, INNER)):
                shape = (E, inner, N) if turned else (E, N, inner)
                self.register_parameter(name, nn.Parameter(torch.randn(shape) / inner**0.5))
                if marks.get("has_bias"):
                    self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(E, N)))
            self.num_experts, self.act_fn = E, nn.SiLU()
            if marks.get("has_post_expert_norm"):
                self.post_expert_norm = nn.LayerNorm(K)

        def forward(self, x, index, weights):
            y = torch.zeros_like(x)
            for e in range(E):
                rows, place = torch.where(index == e)
                first = "gate_up_proj" if self.has_gate else "up_proj"
                h = self.linear(x[rows], first, e)
                h = self._apply_gate(h) if self.has_gate else self.act_fn(h)
                h = self.linear(h, "down_proj", e)
                h = self.post_expert_norm(h) if self.has_post_expert_norm else h
                y = y.index_add(0, rows, h * weights[rows, place, None])
            return y

        def linear(self, x, name, e):
            W = getattr(self, name)[e]
            y = x @ W if self.is_transposed else x @ W.T
            return y + getattr(self, f"{name}_bias")[e] if self.has_bias else y

    if not marks.get("is_concatenated", True):
        # Without attributes of its own, as the class has the default by now.
        Experts._apply_gate = lambda self, h: nn.functional.silu(h[..., ::2]) * (h[..., 1::2] + 1)
    return Experts


LAYOUTS = {
    "plain": {},
    "transposed, interleaved, with biases": {
        "is_transposed": True,
        "is_concatenated": False,
        "has_bias": True,
    },
    "without a gate": {"has_gate": False},
    "with a norm behind": {"has_post_expert_norm": True, "has_bias": True},
}


def module(layout="plain", implementation="eager"):
    """(net with the module as its child "experts", a plain copy of the module)."""
    experts = experts_class(**LAYOUTS[layout])(Config(implementation))
    return nn.ModuleDict({"experts": experts}), copy.deepcopy(experts)


class Config:
    """As Transformers' configs tell an implementation."""

    def __init__(self, implementation):
        self._experts_implementation_internal = implementation

    @property
    def _experts_implementation(self):
        return self._experts_implementation_internal


def arguments(dtype=torch.float32):
    x = torch.randn(T, K, dtype=dtype, requires_grad=True)
    index = torch.stack([torch.randperm(E)[:TOP] for _ in range(T)])
    return x, index, torch.rand(T, TOP, dtype=dtype, requires_grad=True)


def results(experts, given, trained=()):
    y = experts(*given)
    found = torch.autograd.grad(y, (given[0], given[2], *trained), torch.ones_like(y).mul(0.7))
    return [y.detach(), *found]


def with_lora(net, **options):
    return with_update(
        apply_lora(
            net, LoRAConfig(**{"r": 2, "alpha": 3, "target_parameters": ["down_proj", up_of(net)], **options})
        )
    )


def up_of(net):
    return "gate_up_proj" if net["experts"].has_gate else "up_proj"


def merged_plain(net, plain):
    """The plain module with W + s B A as its weights."""
    for layer in dict(lora_layers(net)).values():
        W = layer.weight.detach()
        W = W.transpose(1, 2) if layer.transposed else W
        total = effective_weight(W, layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling)
        getattr(plain, layer.parameter).data = total.transpose(1, 2) if layer.transposed else total
    return plain
