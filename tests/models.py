"""Small layers and models with LoRA whose B is never zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, lora_layers
from fastlora.measuring.inputs import Inputs


def with_update(model: nn.Module) -> nn.Module:
    """Fill B of every LoRA layer with random numbers."""
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)
    return model


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    """Apply LoRA of rank 2 (or as the options say), with an update that is not zero."""
    return with_update(apply_lora(model, LoRAConfig(**{"r": 2, **options})))


def layer_of(ops: Inputs) -> FusedLoRALinear:
    """A layer that holds the operands' W, b, A, B and s."""
    (N, K), r = ops.W.shape, ops.A.shape[0]
    layer = FusedLoRALinear(
        K, N, ops.b is not None, r=r, alpha=ops.s * r, dtype=ops.W.dtype, adapter_dtype=ops.A.dtype
    )
    with torch.no_grad():
        for parameter, value in zip(
            (layer.weight, layer.lora_A, layer.lora_B), (ops.W, ops.A, ops.B), strict=True
        ):
            parameter.copy_(value)
        if ops.b is not None:
            layer.bias.copy_(ops.b)
    return layer


def trained_layer(**options: Any) -> FusedLoRALinear:
    """A layer 5 -> 3 of rank 2 (or as the options say), with an update that is not zero."""
    return with_update(FusedLoRALinear(5, 3, **{"r": 2, **options}))


def mlp() -> nn.Sequential:
    """6 -> 5 -> 3, with ReLU; its layers are "0" and "2"."""
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class Block(nn.Module):
    """Attention and MLP in the naming of language models; all of width 4."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj")})
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        return self.mlp(self.norm(attn["q_proj"](x) * attn["k_proj"](x) + attn["v_proj"](x)))


class TiedLM(nn.Module):
    """Two blocks between an embedding and a head that share one weight; shaped like a Transformers model."""

    def __init__(self, vocabulary: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(4, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.layers:
            x = x + block(x)
        return self.lm_head(x)


class Shared(nn.Module):
    """One linear layer registered under two names, and a third apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.ModuleList([self.first])
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again[0](self.first(x)))


def trainable(model):
    """Names of the parameters that take a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(model, x, steps=3):
    """The model after some steps of all that is trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return model


def moved(model):
    """The model with B away from zero, and DoRA's m from where it started."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
            elif "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model


class NetWithHead(nn.Module):
    """A body, a batch norm with buffers, and a head of two layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.score = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x):
        return self.score(self.norm(self.body(x)))
