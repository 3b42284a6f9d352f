"""Autocast, GradScaler, fp32 adapters on a 16-bit base: nn.Linear's dtypes within the error budget."""

import copy
import itertools
from dataclasses import astuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlora
from fastlora import FusedLoRALinear, lora_linear
from fastlora.analysis import adapter_similarity, update_report
from fastlora.autograd import operators
from fastlora.formula.oracle import unfused
from fastlora.measuring.errors import assert_within_budget, oracle, split_eps
from fastlora.measuring.inputs import random_inputs
from fastlora.routes.route import route_on
from tests.cases import quick
from tests.several_adapters import two
from tests.training.nets import DEVICE, batch, gradients_of, net, same_bits

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
# Base, adapters and autocast's dtype or None.
MODES = [
    mode
    for mode in itertools.product(FLOATS, (None, torch.float32), (None, *HALVES))
    if mode[:2] != (torch.float32, torch.float32)
]


@pytest.fixture(params=["torch", "triton"])
def _path(request):
    with fastlora.set_backend(request.param):
        yield


def needs_kernels_for(dtype):
    """Skip where the kernels were asked for and cannot multiply this dtype."""
    if fastlora.get_backend() == "triton":
        with fastlora.set_backend("auto"):
            runs = route_on(torch.device(DEVICE), dtype).name == "triton"
        if not runs and dtype == torch.bfloat16:
            pytest.skip("Triton's interpreter multiplies bf16 wrongly")


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(("base", "adapter", "autocast"), MODES, ids=str)
def test_every_mode_has_linears_dtypes_and_keeps_the_error_budget(base, adapter, autocast):
    needs_kernels_for(autocast or base)
    o = random_inputs(33, 70, 41, 5, dtype=base, adapter_dtype=adapter, device=DEVICE)
    computed = autocast or base

    def results(function):
        x, A, B = (tensor.detach().clone().requires_grad_() for tensor in (o.x, o.A, o.B))
        with torch.autocast(DEVICE, autocast, enabled=autocast is not None):
            y = function(x, o.W, o.b, A, B, o.s)
            assert y.dtype == F.linear(x, o.W, o.b).dtype
        y.backward(o.dy.to(y.dtype))
        return {"y": y.detach(), "dx": x.grad, "dA": A.grad, "dB": B.grad}

    ours, torchs, truth = results(lora_linear), results(unfused), oracle(o)
    kinds = {"y": computed, "dx": base, "dA": o.A.dtype, "dB": o.B.dtype}
    for name, value in ours.items():
        assert value.dtype == kinds[name]
        # What was multiplied in 16 bits is judged as 16 bits, whatever dtype it is handed over in.
        assert_within_budget(name, value.to(computed), torchs[name], truth[name], extra=split_eps(o))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_a_backward_pass_inside_autocast_changes_no_bit(dropout):
    model, x = net(dropout), batch()
    torch.manual_seed(3)
    y = model(x).square().sum()
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    outside = torch.autograd.grad(y, inputs, retain_graph=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        inside = torch.autograd.grad(y, inputs)
    assert same_bits(list(inside), list(outside))


def merged(model):
    fastlora.merge_lora(model)
    return [layer.weight for _, layer in fastlora.lora_layers(model)]


def started(model):
    plain = fastlora.remove_lora(model)
    torch.manual_seed(3)
    model = fastlora.apply_lora(plain, fastlora.LoRAConfig(r=2))
    fastlora.initialize(model, "pissa-randomized")
    return [model.state_dict()[key] for key in sorted(model.state_dict())]


def combined(model):
    fastlora.combine_adapters(model, {"default": 0.3, "fr": 2.0}, "both", r=2)
    return [factor for _, layer in fastlora.lora_layers(model) for factor in layer.adapters["both"]()]


def analyzed(model):
    numbers = [astuple(layer)[3:] for layer in update_report(model).layers]
    return [torch.tensor(numbers), *adapter_similarity(model, "default", "fr").values()]


@pytest.mark.parametrize(
    ("compute", "dora"),
    [(merged, False), (merged, True), (started, False), (combined, False), (analyzed, False)],
)
def test_what_is_computed_of_the_weights_is_the_same_inside_autocast(compute, dora):
    model = two(first={"dora": dora})
    outside = compute(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        inside = compute(model)
    assert same_bits(list(inside), list(outside))


def test_the_operators_called_as_they_stand_follow_autocast_in_the_forward_alone():
    needs_kernels_for(torch.bfloat16)
    o = random_inputs(6, 7, 5, 2, device=DEVICE)
    half = [tensor.bfloat16() for tensor in (o.x, o.W, o.b)]
    wanted = operators.lora_forward(*half, o.A, o.B, o.s, 0.0, None)
    _, p = operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, 0.0, None)
    operands_back = (o.dy, o.x, o.W, o.A, o.B, p, o.s, 0.0, None, True, True, True)
    gradients = operators.lora_backward(*operands_back)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert same_bits(operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, 0.0, None), wanted)
        assert same_bits(operators.lora_backward(*operands_back), gradients)


@pytest.mark.parametrize("base", [torch.float32, torch.float16], ids=str)
def test_gradients_that_fp16_would_lose_survive_with_a_grad_scaler(base):
    o = random_inputs(6, 7, 5, 2, dtype=base, adapter_dtype=torch.float32, device=DEVICE)

    def gradient(function, scale):
        """dB of (y dy).sum() / 2^28, where dy / 2^28 is zero in fp16; times 2^28."""
        A, B = (tensor.clone().requires_grad_() for tensor in (o.A, o.B))
        scaler, optimizer = torch.amp.GradScaler(DEVICE, init_scale=scale), torch.optim.SGD([A, B])
        with torch.autocast(DEVICE, torch.float16):
            y = function(o.x, o.W, o.b, A, B, o.s)
        scaler.scale((y.float() * o.dy * 2.0**-28).sum()).backward()
        scaler.unscale_(optimizer)
        return (B.grad * 2.0**28).half()

    assert not gradient(lora_linear, 1.0).any()
    ours, torchs = (gradient(function, 2.0**26) for function in (lora_linear, unfused))
    assert_within_budget("dB", ours, torchs, oracle(o)["dB"])


def test_an_overflow_skips_the_step_and_halves_the_scale():
    model, x = net(dtype=torch.float16, adapter_dtype=torch.float32), batch(dtype=torch.float16).detach()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, scaler = torch.optim.AdamW(trained, lr=0.1), torch.amp.GradScaler(DEVICE, init_scale=2.0**10)

    def step(x):
        before = [p.clone() for p in trained]
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            y = model(x)
        scaler.scale(y.float().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        return [not torch.equal(p, old) for p, old in zip(trained, before, strict=True)]

    assert not any(step(x * torch.inf))
    assert scaler.get_scale() == 2**9
    assert all(step(x))
    assert scaler.get_scale() == 2**9


def test_fp32_adapters_take_steps_that_bf16_would_round_away():
    moved = {}
    for adapter_dtype in (torch.bfloat16, torch.float32):
        layer = FusedLoRALinear(7, 5, r=2, dtype=torch.bfloat16, adapter_dtype=adapter_dtype, device=DEVICE)
        nn.init.ones_(layer.lora_B)
        before = layer.lora_B.detach().clone()
        optimizer = torch.optim.Adam([layer.lora_B], lr=1e-3)
        for _ in range(4):
            gradients_of(layer, batch(dtype=torch.bfloat16))
            optimizer.step()
        moved[adapter_dtype] = not torch.equal(layer.lora_B, before)
    assert moved == {torch.bfloat16: False, torch.float32: True}


def test_fp64_stays_fp64_under_autocast_in_both_passes():
    model, x = net(dtype=torch.float64), batch(dtype=torch.float64)
    wanted = gradients_of(model, x)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert same_bits(gradients_of(model, x), wanted)
