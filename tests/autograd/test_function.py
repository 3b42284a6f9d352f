"""What the differentiable formula promises to what wraps it: hooks, checkpointing, transforms."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fastlora
from fastlora import FusedLoRALinear, adapter_batch, lora_linear, set_lora_enabled
from fastlora.measuring.inputs import random_inputs
from tests.cases import quick
from tests.models import adapted
from tests.packed import net as packed_net
from tests.several_adapters import two

BACKENDS = ["torch"] if torch.cuda.is_available() else ["torch", "triton"]


def model(dropout=0.0):
    layers = [
        FusedLoRALinear(7, 12, r=2, dropout=dropout),
        nn.ReLU(),
        FusedLoRALinear(12, 5, r=3, dropout=dropout),
    ]
    for layer in layers[::2]:
        nn.init.normal_(layer.lora_B)
    return nn.Sequential(*layers)


def gradients_of(net, x, run):
    torch.manual_seed(3)
    inputs = [x, *(parameter for parameter in net.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(run(x).square().sum(), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_activation_checkpointing_gives_the_same_bits(backend, use_reentrant, dropout):
    net = model(dropout)
    x = torch.randn(6, 7, requires_grad=True)
    with fastlora.set_backend(backend):
        wanted = gradients_of(net, x, net)
        if use_reentrant:  # it supports .backward() alone
            torch.manual_seed(3)
            checkpoint(net, x, use_reentrant=True).square().sum().backward()
            ours = [x.grad, *(parameter.grad for parameter in net.parameters() if parameter.requires_grad)]
        else:
            ours = gradients_of(net, x, lambda x: checkpoint(net, x, use_reentrant=False))
    for one, other in zip(ours, wanted, strict=True):
        assert torch.equal(one, other)


def test_saved_tensor_hooks_see_every_tensor_that_is_saved():
    o = random_inputs(6, 7, 5, 2)
    x, A, B = (tensor.requires_grad_() for tensor in (o.x, o.A, o.B))
    seen = []

    def pack(tensor):
        seen.append(tuple(tensor.shape))
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = lora_linear(x, o.W, o.b, A, B, o.s)
    y.backward(o.dy)
    assert sorted(seen) == sorted([(6, 7), (5, 7), (2, 7), (5, 2), (6, 2)])


@pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 3, 7)])
def test_what_follows_may_change_the_result_in_place(shape):
    layer = model()[0]
    x = torch.randn(shape, requires_grad=True)
    (wanted,) = torch.autograd.grad((2 * layer(x)).square().sum(), [x])
    (ours,) = torch.autograd.grad(layer(x).mul_(2).square().sum(), [x])
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("kind", ["plain", "dora", "packed", "mixed", "disabled"])
def test_forward_mode_differentiation_goes_through_it(kind):
    packed = kind == "packed"
    model = adapted(packed_net(6, 5, 3)) if packed else two(first={"dora": kind == "dora"})
    set_lora_enabled(model.eval(), kind != "disabled")
    names = ["default", "fr", None, "fr"] if kind == "mixed" else None
    with adapter_batch(model, names) if names else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own torch.jit
        x, v = torch.randn(4, 6), torch.randn(4, 6)
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))).tangent
        J = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(found, torch.einsum("ijkl,kl->ij", J, v))


def test_torch_func_takes_per_sample_gradients_through_it():
    layer = FusedLoRALinear(7, 5, r=2)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(6, 7)
    adapters = {f"adapters.default.{name}": getattr(layer, name).detach() for name in ("lora_A", "lora_B")}

    def loss(adapters, x):
        return torch.func.functional_call(layer, adapters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(adapters, x)
    for i, row in enumerate(x):
        layer.zero_grad()
        layer(row).square().sum().backward()
        for name in adapters:
            torch.testing.assert_close(each[name][i], layer.get_parameter(name).grad)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("x", torch.ones(6, 8), ValueError, r"x must have shape \[..., K=7\]; got \[6, 8\]"),
        ("x", torch.ones(6, 7, dtype=torch.int64), TypeError, "x must be floating point"),
        ("x", torch.ones(6, 7, dtype=torch.float64), TypeError, "x must have W's dtype torch.float32"),
        ("A", torch.ones(2, 8), ValueError, r"A must have shape \[r, K=7\]; got \[2, 8\]"),
        ("A", torch.ones(2, 7, dtype=torch.int64), TypeError, "A must be floating point"),
        ("B", torch.ones(5, 3), ValueError, r"B must have shape \[N=5, r=2\]; got \[5, 3\]"),
        ("B", torch.ones(5, 2, dtype=torch.float64), TypeError, "B must have A's dtype torch.float32"),
        ("b", torch.ones(6), ValueError, r"b must have shape \[N=5\]"),
        ("b", torch.ones(5, dtype=torch.float64), TypeError, r"b must have W's dtype torch.float32"),
        ("W", torch.ones(7), ValueError, r"W must have shape \[N, K\]; got \[7\]"),
        ("W", torch.ones(5, 7, device="meta"), ValueError, "W must be on x's device cpu; got meta"),
    ],
)
def test_an_operand_that_does_not_fit_is_named(name, wrong, error, message):
    o = random_inputs(6, 7, 5, 2)
    setattr(o, name, wrong)
    with pytest.raises(error, match=message):
        lora_linear(o.x, o.W, o.b, o.A, o.B, o.s)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_below_one_is_refused(dropout):
    o = random_inputs(6, 7, 5, 2)
    with pytest.raises(ValueError, match=r"dropout must be a probability in \[0, 1\)"):
        lora_linear(o.x, o.W, o.b, o.A, o.B, o.s, dropout=dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 7), (7,)], ids=str)
def test_without_a_graph_no_function_is_called_and_the_bits_are_the_same(
    monkeypatch, shape, backend, dropout
):
    net, x = model(dropout), torch.randn(shape)
    with fastlora.set_backend(backend):
        torch.manual_seed(4)
        y = net(x)
        monkeypatch.setattr("fastlora.autograd.function.LoRALinearFunction", None)
        for quiet in (torch.no_grad(), torch.inference_mode()):
            torch.manual_seed(4)
            with quiet:
                found = net(x)
                assert not found.requires_grad
                assert torch.equal(found, y)
                found.add_(1)  # what is returned may be changed in place
