"""The torch path against fp64, and the two references against it."""

import pytest
import torch
from torch import nn

from fastlora import LoRAParametrization, ReferenceLoRALinear, reference
from tests.testing import assert_within_budget, gradients, operands, oracle

KINDS = [
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
]


@pytest.mark.parametrize(("dtype", "adapter_dtype"), KINDS, ids=str)
@pytest.mark.parametrize(
    "shape", [(70, 33, 17, 5), (3, 9, 130, 2), (1100, 20, 30, 24), (10, 1030, 520, 2)], ids=str
)
def test_the_hand_written_backward_is_within_the_budget(shape, dtype, adapter_dtype):
    ops = operands(*shape, dtype=dtype, adapter_dtype=adapter_dtype)
    y, p = reference.forward(ops.x, ops.W, ops.b, ops.A, ops.B, ops.s)
    dx, dA, dB = reference.backward(ops.dy, ops.x, ops.W, ops.A, ops.B, p, ops.s)
    torchs, truth = gradients(ops), oracle(ops)
    for name, result in {"y": y, "dx": dx, "dA": dA, "dB": dB}.items():
        assert_within_budget(name, result, torchs[name], truth[name])
    assert (dA.dtype, dB.dtype) == (ops.A.dtype, ops.B.dtype)


def test_gradients_nobody_asked_for_are_not_computed():
    ops = operands(5, 7, 9, 3)
    _, p = reference.forward(ops.x, ops.W, ops.b, ops.A, ops.B, ops.s)
    given = (ops.dy, ops.x, ops.W, ops.A, ops.B, p, ops.s)
    assert reference.backward(*given, need_dx=False, need_dA=False, need_dB=False) == (None, None, None)


def test_wide_adapters_make_no_copy_of_x_however_long_it_is():
    ops = operands(4096, 64, 32, 4, dtype=torch.bfloat16, adapter_dtype=torch.float32)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.numel())
            return result

    with Largest():
        _, p = reference.forward(ops.x, ops.W, ops.b, ops.A, ops.B, ops.s)
        reference.backward(ops.dy, ops.x, ops.W, ops.A, ops.B, p, ops.s)
    assert 0 < largest < ops.x.numel() // 2


def test_the_parametrization_is_w_plus_the_update_and_w_itself_when_off():
    linear = nn.Linear(7, 5)
    W = linear.weight.detach().clone()
    lora = LoRAParametrization.register(linear, r=2, alpha=3)
    nn.init.normal_(lora.lora_B)
    expected = reference.effective_weight(W, lora.lora_A, lora.lora_B, 1.5)
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
