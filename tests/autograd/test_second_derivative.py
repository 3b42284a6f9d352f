"""A derivative of our backward pass: gradient penalties, and everything that asks for one."""

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastlora
from fastlora import FusedLoRALinear, lora_linear
from fastlora.measuring.errors import assert_within_budget
from fastlora.measuring.inputs import random_inputs

BACKENDS = ["torch"] if torch.cuda.is_available() else ["torch", "triton"]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_it_is_what_finite_differences_say(shape, dropout):
    o = random_inputs(1, 4, 5, 2, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def formula(x, A, B):
        torch.manual_seed(5)
        return lora_linear(x, o.W, o.b, A, B, o.s, dropout=dropout)

    assert torch.autograd.gradgradcheck(formula, (x, o.A.requires_grad_(), o.B.requires_grad_()))


class Unfused(nn.Module):
    """The same layer in torch's own operations."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        A, B = self.layer.lora_A, self.layer.lora_B
        return F.linear(x, self.layer.weight, self.layer.bias) + self.layer.scaling * (x @ A.t()) @ B.t()


def nets(dtype=torch.float32):
    layers = [FusedLoRALinear(7, 12, r=2, dtype=dtype), FusedLoRALinear(12, 5, r=3, dtype=dtype)]
    for layer in layers:
        nn.init.normal_(layer.lora_B)
    unfused = [Unfused(layer) for layer in layers]
    return tuple(nn.Sequential(first, nn.Tanh(), second) for first, second in (layers, unfused))


def penalized(net, x, *, constant_dy=True, leaf=True, run=None):
    """Gradients of the penalty on x's gradient, for the adapters."""
    x = x if leaf else x * 1
    y = (run or net)(x)
    (g,) = grad(y.sum() if constant_dy else y.square().sum(), x, create_graph=True)
    return grad(g.square().sum(), [p for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("constant_dy", [True, False])
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("way", ["plain", "checkpoint"])
def test_a_penalty_on_a_gradient_trains_a_and_b_as_in_plain_torch(backend, constant_dy, leaf, way):
    net, unfused = nets()
    x = torch.randn(6, 7, requires_grad=True)
    run = net if way == "plain" else lambda x: checkpoint(net, x, use_reentrant=False)
    options = {"constant_dy": constant_dy, "leaf": leaf}
    with fastlora.set_backend(backend):
        ours = penalized(net, x, run=run, **options)
    torchs = penalized(unfused, x, **options)
    truth = penalized(unfused.double(), x.detach().double().requires_grad_(), **options)
    # The budget has one rounding of ours; here are four passes in a row.
    rounding = 3 * torch.finfo(torch.float32).eps
    for name, *results in zip(("A1", "B1", "A2", "B2"), ours, torchs, truth, strict=True):
        assert_within_budget(name, *results, extra=rounding)


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_dropout_it_has_the_mask_of_its_forward(backend):
    layer = FusedLoRALinear(7, 5, r=2, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x, v = torch.randn(6, 7, requires_grad=True), torch.randn(6, 7)
    with fastlora.set_backend(backend):
        y = layer(x)
    with fastlora.set_backend("torch"):
        (dx,) = grad(y.sum(), x, create_graph=True)
        (dA,) = grad((dx * v).sum(), layer.lora_A)
    # dx is a constant and a part linear in A, so that its product with dA is that part's with v.
    base = torch.ones(6, 5) @ layer.weight
    torch.testing.assert_close((dA * layer.lora_A).sum(), ((dx - base) * v).sum())
    assert ((dx - base).abs() < 1e-6).any()


def test_a_graph_that_nobody_differentiates_gives_the_same_bits():
    net, _ = nets(torch.bfloat16)
    x = torch.randn(6, 7, dtype=torch.bfloat16, requires_grad=True)
    inputs = [x, *(p for p in net.parameters() if p.requires_grad)]
    wanted = grad(net(x).square().sum(), inputs)
    for ours, one in zip(grad(net(x).square().sum(), inputs, create_graph=True), wanted, strict=True):
        assert torch.equal(ours, one)


def test_adapters_wider_than_x_get_theirs_in_their_own_dtype():
    layer = FusedLoRALinear(7, 5, r=2, dtype=torch.bfloat16, adapter_dtype=torch.float32)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(6, 7, dtype=torch.bfloat16, requires_grad=True)
    (dx,) = grad(layer(x).sum(), x, create_graph=True)
    found = grad(dx.square().sum(), [layer.lora_A, layer.lora_B])
    assert [one.dtype for one in found] == [torch.float32] * 2
    assert all(one.any() for one in found)


# Dynamo looks at an autograd.Function by instantiating it, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_aot_autograd_refuses_it_by_name():
    net, _ = nets()
    x = torch.randn(6, 7, requires_grad=True)
    compiled = torch.compile(net, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"double backward|requires create_graph=False"):
        penalized(net, x, run=compiled)
