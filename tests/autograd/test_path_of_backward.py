"""The backward pass takes the code path of its forward, whatever the setting is by then."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastlora
from fastlora import FusedLoRALinear
from fastlora.autograd import operators
from fastlora.measuring.inputs import random_inputs
from fastlora.routes.backend import BackendError

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares the two paths of CPU tensors"),
    # Dynamo looks at an autograd.Function by instantiating it, which torch itself deprecates.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

WAYS = {
    "plain": lambda net, x: net(x),
    "checkpoint": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "reentrant checkpoint": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "compiled": lambda net, x: torch.compile(net, backend="aot_eager", fullgraph=True)(x),
}


def net_of(dropout):
    net = nn.Sequential(
        FusedLoRALinear(7, 12, r=2, dropout=dropout), nn.Tanh(), FusedLoRALinear(12, 5, r=3, dropout=dropout)
    )
    for layer in net[::2]:
        nn.init.normal_(layer.lora_B)
    return net


def gradients_of(net, x, run, forward, backward):
    torch.manual_seed(3)
    tensors = [x, *(parameter for parameter in net.parameters() if parameter.requires_grad)]
    for tensor in tensors:
        tensor.grad = None
    with fastlora.set_backend(forward):
        y = run(net, x)
    with fastlora.set_backend(backward):
        y.square().sum().backward()
    return [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ("triton", "torch"),
        pytest.param("torch", "triton", marks=pytest.mark.exhaustive),
        pytest.param("triton", "auto", marks=pytest.mark.exhaustive),
    ],
)
def test_gradients_are_those_of_the_forwards_mask(way, forward, backward):
    net, x = net_of(0.3), torch.randn(6, 7, requires_grad=True)
    wanted = gradients_of(net, x, WAYS["plain"], forward, forward)
    found = gradients_of(net, x, WAYS[way], forward, backward)
    for ours, one in zip(found, wanted, strict=True):
        assert torch.equal(ours, one)


def test_without_dropout_the_bits_are_the_forwards_paths_too():
    net, x = net_of(0.0), torch.randn(6, 7, requires_grad=True)
    wanted = gradients_of(net, x, WAYS["plain"], "triton", "triton")
    found = gradients_of(net, x, WAYS["plain"], "triton", "torch")
    assert all(torch.equal(ours, one) for ours, one in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7)])
def test_an_empty_batch_through_the_kernels_has_a_backward_elsewhere(shape):
    net, x = net_of(0.3), torch.ones(shape, requires_grad=True)
    grads = gradients_of(net, x, WAYS["plain"], "triton", "torch")
    assert grads[0].shape == shape
    assert not any(grad.any() for grad in grads)


def test_the_operators_take_the_backend_they_are_given_and_no_other_name():
    o, seed = random_inputs(5, 7, 9, 3), torch.tensor([7])
    call = (o.x, o.W, o.b, o.A, o.B, o.s, 0.5, seed)
    with fastlora.set_backend("triton"):
        kernels = operators.lora_forward(*call)
    assert torch.equal(operators.lora_forward(*call, "triton")[0], kernels[0])
    assert not torch.equal(operators.lora_forward(*call, "torch")[0], kernels[0])
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch; got 'cuda'"):
        operators.lora_forward(*call, "cuda")
    with pytest.raises(BackendError, match="float64"):
        operators.lora_forward(*(t.double() for t in call[:5]), *call[5:], "triton")
