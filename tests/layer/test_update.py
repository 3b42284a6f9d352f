"""FusedLoRALinear's update: how it starts, its gradients, merging, switching, dropout, autocast."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from fastlora import FusedLoRALinear, LoRAParametrization, ReferenceLoRALinear
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import random_inputs
from tests.models import layer_of, trained_layer

LOW = (torch.float16, torch.bfloat16)
# The budget is measured against fp64, so it says nothing about fp64; gradcheck does.
BUDGETED = (*LOW, torch.float32)


def results(layer, x, dy):
    """y, dx, dA and dB of a layer with parameters lora_A and lora_B."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    parameters = dict(layer.named_parameters())
    A, B = (next(p for name, p in parameters.items() if name.endswith(end)) for end in ("lora_A", "lora_B"))
    return {"y": y.detach(), "dx": x.grad, "dA": A.grad, "dB": B.grad}


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [*((dtype, dtype) for dtype in BUDGETED), *((dtype, torch.float32) for dtype in LOW)],
)
@pytest.mark.parametrize(("M", "K", "N", "r"), [(33, 70, 41, 5), (7, 9, 130, 1), (600, 17, 3, 24)])
def test_its_numbers_keep_the_error_budget(M, K, N, r, dtype, adapter_dtype):
    ops = random_inputs(M, K, N, r, dtype=dtype, adapter_dtype=adapter_dtype)
    ours, torchs, truth = results(layer_of(ops), ops.x, ops.dy), gradients(ops), oracle(ops)
    for name, value in ours.items():
        assert value.dtype == (adapter_dtype if name in ("dA", "dB") else dtype)
        assert_within_budget(name, value, torchs[name], truth[name])


@pytest.mark.parametrize("dtype", BUDGETED)
def test_it_agrees_with_the_reference_layer_that_has_its_state(dtype):
    ops = random_inputs(33, 70, 41, 5, dtype=dtype)
    layer = layer_of(ops)
    reference = ReferenceLoRALinear(70, 41, r=5, alpha=layer.alpha, dtype=dtype)
    reference.load_state_dict({name.rpartition(".")[2]: value for name, value in layer.state_dict().items()})
    assert reference.scaling == layer.scaling
    theirs, truth = results(reference, ops.x, ops.dy), oracle(ops)
    for name, value in results(layer, ops.x, ops.dy).items():
        assert_within_budget(name, value, theirs[name], truth[name])


@pytest.mark.parametrize("dtype", BUDGETED)
def test_it_agrees_with_lora_as_a_parametrization_of_the_weight(dtype):
    ops = random_inputs(33, 70, 41, 5, dtype=dtype)
    layer = layer_of(ops)
    linear = layer.to_linear(merge=False)
    lora = LoRAParametrization.register(linear, r=5, alpha=layer.alpha)
    lora.load_state_dict({"lora_A": ops.A, "lora_B": ops.B})
    theirs, truth = results(linear, ops.x, ops.dy), oracle(ops)
    for name, value in results(layer, ops.x, ops.dy).items():
        assert_within_budget(name, value, theirs[name], truth[name])


def test_gradcheck_passes_through_the_layer_in_fp64():
    layer = trained_layer(alpha=3, dtype=torch.float64)

    def forward(x, A, B):
        return functional_call(layer, {"adapters.default.lora_A": A, "adapters.default.lora_B": B}, (x,))

    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("name", ["weight", "lora_A", "lora_B"])
@pytest.mark.parametrize("way", ["parametrize", "prune"])
def test_parameters_that_torchs_utilities_replace_are_applied_as_replaced(way, name):
    layer, x = trained_layer(), torch.randn(4, 5)
    owner = layer if name == "weight" else layer.active
    if way == "parametrize":
        parametrize.register_parametrization(owner, name, nn.Tanh())
    else:
        prune.l1_unstructured(owner, name, amount=0.5)
        assert getattr(layer, name).eq(0).any()
    update = layer.scaling * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + update, layer.bias))
    layer(x).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters() if p.requires_grad)


def test_a_second_backward_adds_the_same_gradient_again():
    layer = trained_layer()
    x = torch.randn(4, 5, requires_grad=True)
    y = layer(x).square().sum()
    y.backward(retain_graph=True)
    once = [t.grad.clone() for t in (x, layer.lora_A, layer.lora_B)]
    y.backward()
    for before, tensor in zip(once, (x, layer.lora_A, layer.lora_B), strict=True):
        assert torch.equal(tensor.grad, 2 * before)


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32])
def test_backward_keeps_x_w_a_b_and_p_and_nothing_else(adapter_dtype):
    M, K, N, r = 13, 11, 17, 2
    ops = random_inputs(M, K, N, r, dtype=torch.bfloat16, adapter_dtype=adapter_dtype)
    layer, saved = layer_of(ops), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = layer(ops.x)
    y.backward(ops.dy)
    kinds = [(tuple(t.shape), t.dtype) for t in saved]
    assert kinds == [
        ((M, K), torch.bfloat16),
        ((N, K), torch.bfloat16),
        ((r, K), adapter_dtype),
        ((N, r), adapter_dtype),
        ((M, r), torch.float32),
    ]
    assert saved[0].data_ptr() == ops.x.data_ptr()
    assert saved[1].data_ptr() == layer.weight.data_ptr()


def test_frozen_a_or_b_gets_no_gradient_and_the_other_keeps_its_own():
    layer = trained_layer()
    x = torch.randn(4, 5)
    layer(x).sum().backward()
    expected, layer.lora_B.grad, layer.lora_A.grad = layer.lora_B.grad, None, None
    layer.lora_A.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.lora_A.grad is None
    assert torch.equal(layer.lora_B.grad, expected)


def test_gaussian_a_has_the_standard_deviation_one_over_r_and_b_is_zero():
    layer = FusedLoRALinear(4096, 3, r=4)
    # The deviation of n samples strays by 1 / sqrt(2 n) of itself; five times that is never seen by chance.
    stray = 5 / math.sqrt(2 * layer.lora_A.numel())
    assert abs(layer.lora_A.std().item() * 4 - 1) < stray
    assert not layer.lora_B.any()


def test_kaiming_a_is_uniform_within_one_over_the_root_of_k_as_pefts_default():
    layer = FusedLoRALinear(4096, 3, r=4, init="kaiming")
    bound = 4096**-0.5
    assert layer.lora_A.abs().max() <= bound
    # The largest of n uniform samples falls short of the bound by about 1 / n of it; a hundred times that is
    # never seen by chance.
    assert layer.lora_A.abs().max() > bound * (1 - 100 / layer.lora_A.numel())
    assert not layer.lora_B.any()


def test_resetting_the_adapter_starts_it_anew_and_leaves_w():
    layer = trained_layer()
    W, A = layer.weight.clone(), layer.lora_A.clone()
    layer.reset_adapter()
    assert torch.equal(layer.weight, W)
    assert not torch.equal(layer.lora_A, A)
    assert not layer.lora_B.any()


def test_resetting_all_parameters_of_a_merged_layer_leaves_it_unmerged():
    layer = trained_layer()
    W = layer.weight.clone()
    layer.merge()
    layer.reset_parameters()
    assert not layer.merged
    assert not torch.equal(layer.weight, W)
    assert not layer.lora_B.any()


def test_scaling_is_alpha_over_r_or_over_its_root_and_follows_alpha():
    assert FusedLoRALinear(5, 3, r=4).scaling == 1
    assert FusedLoRALinear(5, 3, r=4, alpha=2).scaling == 0.5
    assert FusedLoRALinear(5, 3, r=4, alpha=2, rslora=True).scaling == 1
    layer = FusedLoRALinear(5, 3, r=4)
    layer.alpha = 8
    assert layer.scaling == 2


def test_dropout_acts_in_training_on_the_low_rank_branch_alone():
    layer = trained_layer(dropout=0.5)
    x = torch.randn(64, 5)
    base = F.linear(x, layer.weight, layer.bias)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    nn.init.zeros_(layer.lora_B)
    assert torch.equal(layer(x), base)
    nn.init.normal_(layer.lora_B)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    without = FusedLoRALinear(5, 3, r=layer.r)
    without.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), without(x))


@pytest.mark.parametrize("state", ["enabled", "disabled", "merged", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_has_the_dtypes_of_the_plain_layer(dtype, state):
    layer = trained_layer(dropout=0.5 if state == "dropout" else 0.0)
    linear = layer.to_linear()
    layer.enabled = state != "disabled"
    if state == "merged":
        layer.merge()
    inputs = [torch.randn(4, 5, dtype=dtype).requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [module(x) for module, x in zip((layer, linear), inputs, strict=True)]
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    outputs[0].sum().backward()
    assert inputs[0].grad.dtype == dtype


def test_under_autocast_it_keeps_the_error_budget_and_fp32_gradients():
    ops = random_inputs(33, 70, 41, 5)
    layer = layer_of(ops)
    reference = ReferenceLoRALinear(70, 41, r=5, alpha=layer.alpha)
    reference.load_state_dict({name.rpartition(".")[2]: value for name, value in layer.state_dict().items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (results(module, ops.x, ops.dy.bfloat16()) for module in (layer, reference))
    truth = oracle(ops)
    for name, value in ours.items():
        assert value.dtype == (torch.bfloat16 if name == "y" else torch.float32)
        # A bf16 matmul rounds its operands to bf16, whatever dtype the gradient has afterwards.
        assert_within_budget(name, value.bfloat16(), theirs[name], truth[name])


def test_fp64_under_autocast_stays_fp64_as_in_the_plain_layer():
    layer = trained_layer(dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == layer.to_linear()(x).dtype == torch.float64
