"""Packed bases, experts and mixed batches in one model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fastlora import (
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    load_pretrained,
    lora_layers,
    remove_lora,
    save_pretrained,
    train_adapters,
    use_adapter,
)
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.integrations.peft import accelerate_peft, forward_counts
from fastlora.layer.base_weights import frozen_weight
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.measuring.errors import assert_within_budget
from tests.experts.mixtures import tiny
from tests.packed import linear_4bit, net

NAMES = ["fr", "default", None, "fr"]


def mixable():
    """Two 4-bit layers with the adapters "default" and "fr", neither of them zero."""
    torch.manual_seed(0)
    model = apply_lora(net(), LoRAConfig(r=2))
    add_adapter(model, "fr", LoRAConfig(r=3))
    for _, layer in lora_layers(model):
        for adapter in layer.adapters.values():
            nn.init.normal_(adapter.lora_B)
    train_adapters(model, ["default", "fr"])
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone(model, x, name):
    """y of rows that all take one adapter, and its gradients; an fp64 x is computed with in fp64."""
    model.zero_grad()
    with use_adapter(model, name):
        y = model(x)
        y.square().sum().backward()
    return y.detach(), {own: grad for own, grad in gradients(model).items() if f".{name}." in own}


def test_adapters_are_mixed_over_a_packed_base():
    model, x = mixable(), torch.randn(4, 64)
    with adapter_batch(model, NAMES):
        y = model(x)
        y.square().sum().backward()
    mixed = gradients(model)
    for name, rows in (("fr", [0, 3]), ("default", [1])):
        (torchs, theirs), (truth, true) = (alone(model, rows, name) for rows in (x[rows], x[rows].double()))
        assert_within_budget(name, y[rows].detach(), torchs, truth)
        for own, grad in theirs.items():
            assert_within_budget(own, mixed[own], grad, true[own])


def test_a_mixed_batch_saves_its_base_packed():
    model, x = mixable(), torch.randn(4, 64)
    shapes = []
    with (
        adapter_batch(model, NAMES),
        torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t),
    ):
        model(x)
    assert shapes
    assert not {(32, 64), (16, 32)} & set(shapes)


def test_pefts_mixed_batches_over_a_packed_base_are_fused():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    model = get_peft_model(net(), config).eval()
    model.add_adapter("fr", config)
    x, names = torch.randn(4, 64), ["fr", "default", "__base__", "fr"]
    stock = model(x, adapter_names=names).detach()
    accelerate_peft(model)
    found = model(x, adapter_names=names).detach()
    assert forward_counts(model) == {"fused": 2}
    W = [frozen_weight(model.base_model.model[place].base_layer).double() for place in (0, 2)]
    plain = nn.Sequential(nn.Linear(64, 32, False), nn.ReLU(), nn.Linear(32, 16, False)).double()
    with torch.no_grad():
        plain[0].weight.copy_(W[0]), plain[2].weight.copy_(W[1])
    true = get_peft_model(plain, config).eval()
    true.add_adapter("fr", config)
    values = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    true.load_state_dict(values, strict=False)
    assert_within_budget("y", found, stock, true.double()(x.double(), adapter_names=names).detach())


def packed_mixture():
    """A mixture whose attention is in 4 bits, and whose experts are plain."""
    model = tiny("Qwen3Moe")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "self_attn" in name:
            model.set_submodule(name, linear_4bit(module.weight.detach()))
    return model


@pytest.mark.filterwarnings("ignore:merging .* packed layers makes them plain:UserWarning")
def test_a_mixture_over_packed_attention_trains_is_saved_and_merged(tmp_path):
    tokens = torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(1))
    model = apply_lora(packed_mixture(), LoRAConfig(r=2))
    for kind in (FusedLoRAExperts, QuantizedLoRALinear):
        assert any(isinstance(layer, kind) for _, layer in lora_layers(model))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(layer.lora_B.grad is not None for _, layer in lora_layers(model))
    model.eval()
    y = model(input_ids=tokens).logits.detach()
    save_pretrained(model, tmp_path / "adapter")
    again = load_pretrained(packed_mixture().eval(), tmp_path / "adapter")
    assert torch.equal(again(input_ids=tokens).logits, y)
    merged = remove_lora(model, merge=True)(input_ids=tokens).logits.detach()
    torch.testing.assert_close(merged, y)
    assert not list(lora_layers(model))
