"""The vendor's products beside kernels: the formula, the fused kernels' mask, what is kept."""

import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from fastlora import lora_linear
from fastlora.autograd import calls
from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.measuring.errors import assert_within_budget, gradients, oracle, split_eps
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import fused, vendor_beside_kernels
from fastlora.routes.decide import Decision
from fastlora.routes.route import Route
from tests.cases import quick, quick_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [(torch.float32, None), (torch.float16, torch.float32), (torch.float16, None)]
VENDOR, KERNELS = Route("vendor", "a test"), Route("interpreter", "a test")

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize(("dtype", "adapter"), quick_rows(KINDS, KINDS[1]), ids=str)
@pytest.mark.parametrize(
    "shape", quick([(70, 130, 90, 24), (37, 70, 43, 5), (1, 9, 7, 1)], (37, 70, 43, 5)), ids=str
)
def test_output_and_gradients_are_within_the_budget(shape, dtype, adapter):
    inputs = random_inputs(*shape, dtype=dtype, adapter_dtype=adapter, device=DEVICE)
    o = inputs.call()
    y, p = vendor_beside_kernels.forward(o)
    dx, dA, dB = vendor_beside_kernels.backward(o, inputs.dy, p, EVERYTHING)
    torchs, truth = gradients(inputs), oracle(inputs)
    for name, result in {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}.items():
        assert_within_budget(name, result, torchs[name], truth[name], extra=split_eps(inputs))


@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_the_mask_is_the_fused_kernels_so_passes_may_take_different_routes(dropout):
    inputs = random_inputs(37, 70, 43, 5, device=DEVICE)
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    o = inputs.call(dropout, seed)
    y, p = vendor_beside_kernels.forward(o)
    wanted_y, wanted_p = fused.forward(o)
    assert torch.equal(p, wanted_p)
    torch.testing.assert_close(y, wanted_y)
    mine = vendor_beside_kernels.backward(o, inputs.dy, p, EVERYTHING)
    dx, dA, dB = fused.backward(o, inputs.dy, p, EVERYTHING)
    assert torch.equal(mine[1], dA)
    assert torch.equal(mine[2], dB)
    torch.testing.assert_close(mine[0], dx)


def test_only_what_is_asked_for_is_computed_and_it_has_the_same_bits():
    inputs = random_inputs(20, 70, 43, 5, device=DEVICE)
    o = inputs.call(0.3, torch.tensor([7], device=DEVICE))
    _, p = vendor_beside_kernels.forward(o)
    whole = vendor_beside_kernels.backward(o, inputs.dy, p, EVERYTHING)
    for needs in itertools.starmap(Needs, itertools.product((True, False), repeat=3)):
        some = vendor_beside_kernels.backward(o, inputs.dy, p, needs)
        for one, all_, need in zip(some, whole, needs, strict=True):
            assert torch.equal(one, all_) if need else one is None


@pytest.mark.parametrize("routes", [(VENDOR, VENDOR), (KERNELS, VENDOR), (VENDOR, KERNELS)], ids=str)
def test_a_call_takes_the_routes_that_were_decided_and_saves_the_same(routes, monkeypatch):
    inputs = random_inputs(12, 40, 24, 4, device=DEVICE)
    ran = []
    for module, name in itertools.product((fused, vendor_beside_kernels), ("forward", "backward")):
        pass_ = getattr(module, name)

        def noted(*given, pass_=pass_, what=(module, name)):
            ran.append(what)
            return pass_(*given)

        monkeypatch.setattr(module, name, noted)
    monkeypatch.setattr(calls, "decide", lambda *_: Decision(*routes))
    x, A, B = (tensor.requires_grad_() for tensor in (inputs.x, inputs.A, inputs.B))
    saved = []
    with saved_tensors_hooks(lambda tensor: (saved.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
        y = lora_linear(x, inputs.W, inputs.b, A, B, inputs.s)
    y.backward(inputs.dy)
    expected = {VENDOR: vendor_beside_kernels, KERNELS: fused}
    assert ran == [(expected[routes[0]], "forward"), (expected[routes[1]], "backward")]
    M, K, N, r = 12, 40, 24, 4
    assert sum(saved) == 4 * (M * K + N * K + r * (K + N) + M * r)
