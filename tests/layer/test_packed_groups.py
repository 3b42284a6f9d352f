"""Groups over packed W: unpacked in each pass of the group, and saved packed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastlora import (
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    group_counts,
    group_projections,
    train_adapters,
    ungroup_projections,
)
from fastlora.formula import oracle
from fastlora.integrations.peft import accelerate_peft, forward_counts, register
from fastlora.layer.base_weights import frozen_weight
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes import dequantize as unpacking
from tests.cases import quick
from tests.models import with_update
from tests.packed import FAMILY, MAKERS

SIZES = {"q_proj": 12, "k_proj": 8, "v_proj": 8}


class Attention(nn.Module):
    """Three packed projections of one x."""

    def __init__(self, formats=(FAMILY,) * 3, dtype=torch.float32, K=64):
        super().__init__()
        for (name, N), format in zip(SIZES.items(), formats, strict=True):
            W, b = torch.randn(N, K, dtype=dtype) / 8, torch.randn(N, dtype=dtype)
            setattr(self, name, nn.Linear(K, N) if format is None else MAKERS[format](W, b))

    def forward(self, x):
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


def grouped(formats=(FAMILY,) * 3, **options):
    """A grouped model and the report."""
    model = with_update(apply_lora(Attention(formats, **options), LoRAConfig(r=2)))
    return model, group_projections(model)


def step(model, x, run=None):
    x = x.clone().requires_grad_()
    y = (run or model)(x * 1)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return found


def unpacked(model, dtype):
    """A plain net with the same values, by separate torch operations."""
    net = copy.deepcopy(model)
    ungroup_projections(net)
    for name in SIZES:
        layer = getattr(net, name)
        W, b, A, B = (
            t.detach().to(dtype) for t in (frozen_weight(layer), layer.bias, layer.lora_A, layer.lora_B)
        )
        plain = Unfused(W, b, A, B, layer.scaling)
        net._modules[name] = plain  # on purpose, so without a warning
    return net


class Unfused(nn.Module):
    """The formula, with A and B trained."""

    def __init__(self, W, b, A, B, s):
        super().__init__()
        self.frozen, self.A, self.B, self.s = (W, b), nn.Parameter(A), nn.Parameter(B), s

    def forward(self, x):
        return oracle.unfused(x, *self.frozen, self.A, self.B, self.s)


def assert_right(model, x, run=lambda net: net):
    """Hold y, dx, dA and dB to fp64, by the error of the same net in x's dtype."""
    ours = step(model, x, run(model))
    torchs, truths = (
        step(net := unpacked(model, dtype), x.to(dtype), run(net)) for dtype in (x.dtype, torch.float64)
    )
    assert len(ours) == len(truths)
    for one, other, truth in zip(ours, torchs, truths, strict=True):
        assert_within_budget("grouped", one, other, truth)


@pytest.mark.parametrize("format", quick(MAKERS, FAMILY))
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)])
def test_a_step_equals_that_of_layers_alone(format, dtype):
    model, _ = grouped((format,) * 3, dtype=dtype)
    assert_right(model, torch.randn(2, 3, 64, dtype=dtype))
    counts = group_counts(model)
    assert (counts.rounds, counts.hits) == (1, 2)
    assert not counts.alone


def test_each_pass_unpacks_each_member_once_and_only_what_it_reads(monkeypatch):
    seen = []
    format = unpacking.FORMATS[FAMILY]
    once = format.dequantize
    monkeypatch.setattr(format, "dequantize", lambda base: seen.append(base.N) or once(base))
    model, _ = grouped()
    y = model(torch.randn(5, 64))
    assert seen == list(SIZES.values())
    y.sum().backward()  # x needs no gradient: dA and dB do not read W
    assert seen == list(SIZES.values())
    y = model(torch.randn(5, 64, requires_grad=True) * 1)
    y[:, :12].sum().backward()
    assert seen == [*SIZES.values(), *SIZES.values(), *SIZES.values()]


def test_packed_tensors_are_saved_and_never_w():
    model, _ = grouped()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(torch.randn(5, 64, requires_grad=True) * 1)
    assert not [t for t in saved if t.dtype == torch.float32 and t.shape in [(N, 64) for N in SIZES.values()]]
    assert sum(t.dtype == torch.uint8 for t in saved) >= 3


def test_checkpointing_and_autocast():
    model, _ = grouped()
    x = torch.randn(3, 64)
    assert_right(model, x, lambda net: lambda x: checkpoint(net, x, use_reentrant=False))
    with torch.autocast("cpu", torch.bfloat16):  # which the library's layers do not follow
        found = step(model, x)
    for one, other in zip(found, step(model, x), strict=True):
        assert torch.equal(one, other)
    assert not group_counts(model).alone


def test_w_that_is_packed_anew_in_between_is_noticed():
    model, _ = grouped()
    x = torch.randn(3, 64)
    model.q_proj(x)
    model.k_proj.weight.data = model.k_proj.weight.data.clone()
    model.k_proj(x), model.v_proj(x)
    model(torch.randn(3, 64))
    assert dict(group_counts(model).misses) == {"the adapter or an option was changed": 1}


def test_packed_and_plain_members_are_no_group():
    _, report = grouped((FAMILY, None, None))
    assert [sorted(names) for names in report.grouped] == []
    assert set(report.alone.values()) == {"the projections have different formats of W: bnb-4bit, plain"}


def test_a_mixed_batch_over_packed_w_computes_alone_and_the_group_goes_on():
    model, _ = grouped()
    add_adapter(model, "fr", LoRAConfig(r=3))
    for name in SIZES:
        nn.init.normal_(getattr(model, name).adapters["fr"].lora_B)
    train_adapters(model, ["fr", "default"])
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    x = torch.randn(3, 64)
    found = []
    for net in (model, apart):
        with adapter_batch(net, ["fr", None, "default"]):
            found.append(step(net, x))
    assert all(map(torch.equal, *found))
    assert list(group_counts(model).alone) == ["in an adapter_batch, or just after one"]
    model(x)
    assert_right(model, x)
    counts = group_counts(model)
    assert counts.hits > 0
    assert not counts.dissolved


@pytest.mark.parametrize("registered", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_pefts_layers_over_packed_w_are_grouped(registered):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=list(SIZES), init_lora_weights=False)
    if registered:
        config = register(config, group=True)
    model = peft.get_peft_model(Attention(), config)
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    for net, group in ((model, True), (apart, False)):
        accelerate_peft(net, group=group)
    x = torch.randn(3, 64)
    for one, other in zip(step(model, x), step(apart, x), strict=True):
        assert_within_budget("grouped", one.half(), other.half(), other.double())
    assert (group_counts(model).hits, group_counts(apart).groups) == (2, 0)
    assert forward_counts(model) == {"fused": 3}
