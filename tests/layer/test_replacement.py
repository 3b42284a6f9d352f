"""What a layer must be to be wrapped, and what comes along when one layer takes the place of another."""

import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fastlora import FusedLoRALinear, LoRAParametrization


class Subclass(nn.Linear):
    pass


def with_replaced_forward():
    linear = nn.Linear(4, 3)
    linear.forward = lambda x: x
    return linear


def with_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still found in models
        return nn.utils.weight_norm(nn.Linear(4, 3))


def with_parametrization():
    linear = nn.Linear(4, 3)
    LoRAParametrization.register(linear)
    assert parametrize.is_parametrized(linear)
    return linear


def with_integer_weight():
    linear = nn.Linear(4, 3)
    linear.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    return linear


def compiled():
    linear = nn.Linear(4, 3)
    linear.compile(backend="eager")
    return linear


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ReLU(), r"linear must be exactly an nn.Linear; got ReLU"),
        (lambda: torch.zeros(3, 4), r"linear must be exactly an nn.Linear; got Tensor"),
        (lambda: Subclass(4, 3), r"linear must be exactly an nn.Linear; got Subclass"),
        (lambda: FusedLoRALinear(4, 3), r"linear must be exactly an nn.Linear; got FusedLoRALinear"),
        (lambda: nn.LazyLinear(3), r"linear must be exactly an nn.Linear; got LazyLinear"),
        (with_parametrization, r"linear must be exactly an nn.Linear; got Parametrized"),
        (with_weight_norm, r"linear must hold a weight and a bias and nothing else; it has .*weight_g"),
        (with_replaced_forward, r"linear must keep its class's forward"),
        (compiled, r"linear must be compiled afterwards"),
        (
            with_integer_weight,
            "linear.weight must hold its numbers .* in torch.int8, not in one of torch.float16",
        ),
        (lambda: nn.Linear(4, 3).to(torch.float8_e4m3fn), "linear.weight must .*float8"),
        (lambda: nn.Linear(4, 3, dtype=torch.complex64), "linear.weight must .*complex64"),
    ],
)
def test_what_is_not_plainly_a_linear_layer_is_refused(make, message):
    module = make()
    with pytest.raises(TypeError, match=message):
        FusedLoRALinear.from_linear(module)


def test_a_refused_rank_leaves_the_layer_trainable():
    linear = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="r must be"):
        FusedLoRALinear.from_linear(linear, r=0)
    assert linear.weight.requires_grad
    assert linear.bias.requires_grad


def test_a_failed_allocation_leaves_the_layer_trainable(monkeypatch):
    linear = nn.Linear(4, 3)

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        FusedLoRALinear.from_linear(linear)
    assert linear.weight.requires_grad


def test_wrapping_keeps_the_parameter_objects_the_mode_and_the_users_own_attributes():
    linear = nn.Linear(4, 3).eval()
    linear.note = "keep me"
    layer = FusedLoRALinear.from_linear(linear, r=2)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training
    assert layer.note == "keep me"
    plain = layer.to_linear(merge=False)
    assert type(plain) is nn.Linear
    assert plain.note == "keep me"
    assert vars(plain).keys() == vars(linear).keys()


@pytest.mark.parametrize("bias", [True, False])
def test_wrapping_and_unwrapping_adds_no_parameter_and_no_buffer(bias):
    linear = nn.Linear(4, 3, bias=bias)
    plain = FusedLoRALinear.from_linear(linear, r=2).to_linear(merge=False)
    assert dict(plain.named_parameters()) == dict(linear.named_parameters())
    assert not list(plain.buffers())
    assert "lora" not in repr(plain)
    assert plain.bias is linear.bias


def test_every_kind_of_hook_comes_along_and_its_handle_still_removes_it():
    calls = []

    def note(name):
        return lambda *args, **kwargs: calls.append(name)

    linear = nn.Linear(4, 3)
    handles = [
        linear.register_forward_pre_hook(note("before forward")),
        linear.register_forward_hook(note("after forward"), with_kwargs=True, always_call=True),
        linear.register_full_backward_pre_hook(note("before backward")),
        linear.register_full_backward_hook(note("after backward")),
        linear.register_state_dict_pre_hook(note("before state_dict")),
        linear.register_load_state_dict_post_hook(note("after load")),
    ]
    expected = {
        "before forward",
        "after forward",
        "before backward",
        "after backward",
        "before state_dict",
        "after load",
    }
    layer = FusedLoRALinear.from_linear(linear)
    for module in (layer, layer.to_linear()):
        calls.clear()
        module(torch.randn(2, 4, requires_grad=True)).sum().backward()
        module.load_state_dict(module.state_dict())
        assert set(calls) == expected
    calls.clear()
    for handle in handles:
        handle.remove()
    layer(torch.randn(2, 4, requires_grad=True)).sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert not calls


def test_a_full_backward_hook_sees_the_gradient_of_the_input():
    seen = []
    linear = nn.Linear(4, 3)
    linear.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append((module, grad_in[0])))
    layer = FusedLoRALinear.from_linear(linear)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert seen[0][0] is layer
    assert torch.equal(seen[0][1], x.grad)


def test_a_hook_before_loading_gets_the_new_layer_even_when_the_old_one_is_gone():
    seen = []
    linear = nn.Linear(4, 3)
    linear.register_load_state_dict_pre_hook(lambda module, *args: seen.append(module))
    layer = FusedLoRALinear.from_linear(linear)
    gone = weakref.ref(linear)
    state = layer.state_dict()
    del linear
    assert gone() is None
    layer.load_state_dict(state)
    assert seen == [layer]
    layer.to_linear()
    layer.load_state_dict(state)
    assert seen == [layer, layer]


def test_a_gradient_left_from_before_wrapping_is_dropped():
    linear = nn.Linear(4, 3)
    linear(torch.randn(2, 4)).sum().backward()
    before = linear.weight.clone()
    layer = FusedLoRALinear.from_linear(linear)
    with pytest.warns(UserWarning, match="no gradient in this step"):
        torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert torch.equal(layer.weight, before)


def test_a_layer_whose_forward_was_replaced_is_not_unwrapped():
    layer = FusedLoRALinear(4, 3)
    layer.forward = lambda x: x
    with pytest.raises(TypeError, match="layer must keep its class's forward"):
        layer.to_linear()
