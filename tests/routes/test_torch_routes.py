"""The torch path against fp64, and the two references against it."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastlora import LoRAParametrization, ReferenceLoRALinear
from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.formula.oracle import effective_weight
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import cpu, vendor
from fastlora.routes.products import gram, scaled_product

KINDS = [
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
]


@pytest.mark.parametrize("route", [cpu, vendor], ids=["cpu", "vendor"])
@pytest.mark.parametrize(("dtype", "adapter_dtype"), KINDS, ids=str)
@pytest.mark.parametrize(
    "shape", [(70, 33, 17, 5), (3, 9, 130, 2), (1100, 20, 30, 24), (10, 1030, 520, 2)], ids=str
)
def test_the_hand_written_backward_is_within_the_budget(shape, dtype, adapter_dtype, route):
    ops = random_inputs(*shape, dtype=dtype, adapter_dtype=adapter_dtype)
    y, p = route.forward(ops.call())
    dx, dA, dB = route.backward(ops.call(), ops.dy, p, EVERYTHING)
    torchs, truth = gradients(ops), oracle(ops)
    for name, result in {"y": y, "dx": dx, "dA": dA, "dB": dB}.items():
        assert_within_budget(name, result, torchs[name], truth[name])
    assert (dA.dtype, dB.dtype) == (ops.A.dtype, ops.B.dtype)


class Products(TorchDispatchMode):
    """Notes whether a matrix product in bf16 gets an operand with gaps between its rows."""

    def __init__(self):
        super().__init__()
        self.products, self.gaps = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in function.__name__:
            matrices = [a for a in args if isinstance(a, torch.Tensor) and a.dim() == 2]
            halves = [matrix for matrix in matrices if matrix.dtype == torch.bfloat16]
            self.products += 1
            self.gaps += any(not (one.is_contiguous() or one.t().is_contiguous()) for one in halves)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_torch_never_multiplies_bf16_rows_with_gaps(adapter_dtype):
    # Only some CPUs' products read what lies in the gaps, so this looks at the operands.
    ops = random_inputs(50, 72, 104, 8, dtype=torch.bfloat16, adapter_dtype=adapter_dtype)
    torchs, truth = gradients(ops), oracle(ops)
    for name in ("x", "W", "A", "B", "dy"):
        tensor = getattr(ops, name)
        wide = tensor.new_full((tensor.shape[0], tensor.shape[1] + 16), float("nan"))
        wide[:, : tensor.shape[1]] = tensor
        setattr(ops, name, wide[:, : tensor.shape[1]])
    with Products() as seen:
        y, p = cpu.forward(ops.call())
        dx, dA, dB = cpu.backward(ops.call(), ops.dy, p, EVERYTHING)
    assert (seen.products > 5, seen.gaps) == (True, 0)
    for name, result in {"y": y, "dx": dx, "dA": dA, "dB": dB}.items():
        assert_within_budget(name, result, torchs[name], truth[name])


@pytest.mark.parametrize("route", [cpu, vendor], ids=["cpu", "vendor"])
@pytest.mark.parametrize("alone", range(3))
def test_gradients_nobody_asked_for_are_not_computed(route, alone):
    ops, seed = random_inputs(5, 7, 9, 3), torch.tensor([3])
    call = ops.call(0.4, seed)
    _, p = route.forward(call)
    whole = route.backward(call, ops.dy, p, EVERYTHING)
    found = route.backward(call, ops.dy, p, Needs(*(alone == which for which in range(3))))
    assert [one is not None for one in found] == [alone == which for which in range(3)]
    assert torch.equal(found[alone], whole[alone])
    assert route.backward(call, ops.dy, p, Needs(False, False, False)) == (None, None, None)


def test_with_dropout_both_routes_of_torch_drop_the_same_entries():
    ops, seed = random_inputs(40, 70, 9, 3), torch.tensor([3])
    call = ops.call(0.4, seed)
    (y, p), (other_y, other_p) = cpu.forward(call), vendor.forward(call)
    torch.testing.assert_close(y, other_y)
    torch.testing.assert_close(p, other_p)
    for one, other in zip(
        cpu.backward(call, ops.dy, p, EVERYTHING), vendor.backward(call, ops.dy, p, EVERYTHING), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_wide_adapters_make_no_copy_of_x_however_long_it_is():
    ops = random_inputs(4096, 64, 32, 4, dtype=torch.bfloat16, adapter_dtype=torch.float32)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.numel())
            return result

    with Largest():
        _, p = cpu.forward(ops.call())
        cpu.backward(ops.call(), ops.dy, p, EVERYTHING)
    assert 0 < largest < ops.x.numel() // 2


def test_the_parametrization_is_w_plus_the_update_and_w_itself_when_off():
    linear = nn.Linear(7, 5)
    W = linear.weight.detach().clone()
    lora = LoRAParametrization.register(linear, r=2, alpha=3)
    nn.init.normal_(lora.lora_B)
    expected = effective_weight(W, lora.lora_A, lora.lora_B, 1.5)
    torch.testing.assert_close(linear.weight, expected)
    lora.enabled = False
    assert torch.equal(linear.weight, W)
    assert {name for name, p in linear.named_parameters() if p.requires_grad} == {
        "parametrizations.weight.0.lora_A",
        "parametrizations.weight.0.lora_B",
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_the_reference_layer_scales_by_alpha_over_r_or_its_root(rslora):
    layer = ReferenceLoRALinear(6, 4, r=4, alpha=2, rslora=rslora)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 6)
    s = 1.0 if rslora else 0.5
    update = (x @ layer.lora_A.T @ layer.lora_B.T) * s
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias + update)
    layer.enabled = False
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_product_is_scaled_before_it_is_rounded(dtype):
    ones = torch.full((1, 64), 64.0, dtype=dtype)
    assert scaled_product(ones, ones.t(), 1 / 16) == 64**3 / 16  # unscaled it is beyond fp16


def test_gradients_of_few_ranks_and_many_rows_are_right_and_lie_as_parameters_do():
    dy, p = torch.randn(70, 40), torch.randn(70, 5)
    found, exact = gram(dy, p, torch.float32, 2.0), 2 * dy.double().t() @ p.double()
    plain = 2 * dy.t() @ p
    assert found.is_contiguous()
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max()
