"""What the fused forward of PEFT's layers computes, against fp64 and PEFT's own error."""

import copy
import itertools

import pytest
import torch
from peft.tuners.lora import Linear

from fastlora import set_backend
from fastlora.integrations.peft import accelerate_peft, forward_counts
from fastlora.measuring.errors import assert_within_budget, oracle, split_eps
from fastlora.measuring.inputs import random_inputs
from tests.integrations.peft_models import layer_of, results

HALVES = (torch.float16, torch.bfloat16)
DTYPES = [(dtype, dtype) for dtype in (torch.float32, *HALVES)]
DTYPES += [(dtype, torch.float32) for dtype in HALVES]


def assert_as_good_as_peft(ops, *, options=None):
    stock = layer_of(ops, **(options or {}))
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    theirs, ours, truth = results(stock, ops), results(fused, ops), oracle(ops)
    assert set(forward_counts(fused)) == {"fused"}
    for name in ("y", "dx", "dA", "dB"):
        assert ours[name].dtype == theirs[name].dtype
        assert_within_budget(name, ours[name], theirs[name], truth[name], extra=split_eps(ops))


@pytest.mark.parametrize(
    ("dtypes", "bias"), list(itertools.product(DTYPES, (True, False))), ids=lambda v: str(v)
)
def test_output_and_gradients_are_as_exact_as_pefts(dtypes, bias):
    dtype, adapter_dtype = dtypes
    assert_as_good_as_peft(random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=adapter_dtype, bias=bias))


@pytest.mark.parametrize("adapter_dtype", [torch.float16, torch.float32])
def test_the_kernels_serve_pefts_layers(adapter_dtype):
    with set_backend("triton"):
        assert_as_good_as_peft(random_inputs(19, 21, 23, 3, dtype=torch.float16, adapter_dtype=adapter_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_fused(dtype, adapter_dtype):
    ops = random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=adapter_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        stock = layer_of(ops)
        fused = copy.deepcopy(stock)
        accelerate_peft(fused)
        theirs, ours, truth = results(stock, ops), results(fused, ops), oracle(ops)
    assert set(forward_counts(fused)) == {"fused"}
    for name in ("y", "dx", "dA", "dB"):
        assert ours[name].dtype == theirs[name].dtype
        assert_within_budget(name, ours[name], theirs[name], truth[name], extra=split_eps(ops))


def test_rows_of_any_shape_are_taken():
    ops = random_inputs(12, 6, 5, 2)
    stock = layer_of(ops)
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    for x in (
        ops.x[0],
        ops.x.view(2, 3, 2, 6),
        ops.x[:0],
        ops.x.t().contiguous().t(),
        ops.x[:1].expand(4, 6),
    ):
        assert fused(x).shape == stock(x).shape
        torch.testing.assert_close(fused(x), stock(x))
    assert set(forward_counts(fused)) == {"fused"}


def test_a_padded_rank_and_a_scaling_that_is_a_tensor_are_fused():
    ops = random_inputs(37, 29, 43, 5)
    stock = layer_of(ops)
    for module, shape in ((stock.lora_A, (8, 29)), (stock.lora_B, (43, 8))):
        weight = module["default"].weight
        padded = torch.zeros(shape)
        padded[: weight.shape[0], : weight.shape[1]] = weight.detach()
        weight.data = padded
    stock.scaling["default"] = torch.tensor(ops.s)
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    theirs, ours, truth = results(stock, ops), results(fused, ops), oracle(ops)
    assert set(forward_counts(fused)) == {"fused"}
    for tensors in (theirs, ours):
        tensors["dA"], tensors["dB"] = tensors["dA"][:5], tensors["dB"][:, :5]
    for name in ("y", "dx", "dA", "dB"):
        assert_within_budget(name, ours[name], theirs[name], truth[name])


def test_the_gradients_of_x_a_b_and_the_scaling_are_those_of_finite_differences():
    layer = layer_of(random_inputs(1, 4, 3, 2, dtype=torch.float64))
    accelerate_peft(layer)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
    layer.scaling["default"] = s
    # gradcheck changes its inputs in place, so that the layer sees them.
    inputs = (x, s, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs)
    assert set(forward_counts(layer)) == {"fused"}


def test_a_change_in_place_of_the_output_reaches_the_gradients():
    ops = random_inputs(7, 6, 5, 2)
    layer = layer_of(ops)
    accelerate_peft(layer)
    y = layer(ops.x)
    y *= 2
    y.backward(ops.dy)
    doubled = layer.lora_B["default"].weight.grad.clone()
    torch.testing.assert_close(doubled, 2 * results(layer, ops)["dB"])


def identity_layer(p, K=64):
    """A layer whose output is x_d itself: A = B = I, W = 0, s = 1."""
    ops = random_inputs(1, K, K, K, bias=False, s=1.0)
    ops.W, ops.A, ops.B = torch.zeros(K, K), torch.eye(K), torch.eye(K)
    layer = layer_of(ops, lora_dropout=p)
    accelerate_peft(layer)
    return layer


def test_dropout_has_pefts_distribution():
    p, M = 0.25, 256
    layer = identity_layer(p)
    x = torch.ones(M, 64)
    y = layer(x)
    kept = y != 0
    assert forward_counts(layer) == {"fused": 1}
    assert y[kept].unique().numel() == 1
    torch.testing.assert_close(y[kept][0], torch.tensor(1 / (1 - p)))
    # Five standard deviations of a binomial share.
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert not torch.equal(layer(x), y)


def test_dropout_acts_in_training_alone_and_follows_the_dropout_modules_own_mode():
    layer, x = identity_layer(0.25), torch.ones(3, 64)
    torch.testing.assert_close(layer.eval()(x), x)
    layer.lora_dropout["default"].train()
    assert not torch.equal(layer(x), x)
    assert isinstance(layer, Linear)
    assert forward_counts(layer) == {"fused": 2}


def test_a_seed_reproduces_the_dropout():
    layer, x = identity_layer(0.25), torch.ones(3, 64)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(layer(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
