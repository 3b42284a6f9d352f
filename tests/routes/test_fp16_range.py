"""What fp16 cannot hold in between does not spoil a result: the kernels and the torch paths, with an fp16 x.

fp16 ends at 65504 and loses bits below 2^-14. bf16 has fp32's range.
"""

import pytest
import torch

from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.errors import assert_within_budget, gradients, oracle, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import cpu, fused, vendor
from tests.cases import quick

pytestmark = pytest.mark.usefixtures("poisoned")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
PATHS = {"kernels": fused, "vendor": vendor} | ({} if ON_GPU else {"cpu": cpu})


def run(path: str, inputs: Inputs, dropout: float = 0.0) -> dict[str, torch.Tensor]:
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    o = inputs.call(dropout, seed)
    y, p = PATHS[path].forward(o)
    dx, dA, dB = PATHS[path].backward(o, inputs.dy, p, EVERYTHING)
    return {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}


def made(adapter: torch.dtype, s: float = 0.5) -> Inputs:
    return random_inputs(40, 200, 104, 16, dtype=FP16, adapter_dtype=adapter, s=s, device=DEVICE)


def tiny_q() -> Inputs:
    """B of 1e-3 and dy of 1e-4: q is near 5e-7."""
    inputs = made(FP32)
    inputs.B.mul_(1e-3)
    inputs.dy.mul_(1e-4)
    return inputs


def tiny_B() -> Inputs:
    """B of 1e-5, as early in training, and no W, so that nothing hides y's and dx's low-rank part."""
    inputs = made(FP32, s=16.0)
    inputs.B.mul_(1e-5 * 16**0.5)
    inputs.W.zero_()
    inputs.b.zero_()
    return inputs


def large_p(adapter: torch.dtype = FP32, x: float = 400.0, s: float = 0.5) -> Inputs:
    """p is 200 x."""
    inputs = made(adapter, s)
    inputs.x.fill_(x)
    inputs.A.fill_(1)
    inputs.B.fill_(1e-3)
    inputs.dy.fill_(1e-3)
    return inputs


def large_q() -> Inputs:
    """q is 200 * 1e3 * 104 / 2."""
    inputs = made(FP32)
    inputs.dy.fill_(200)
    inputs.B.fill_(1e3)
    inputs.A.mul_(1e-5)
    return inputs


def large_A(adapter: torch.dtype) -> Inputs:
    """A is beyond fp16, and most of B below it."""
    inputs = made(adapter)
    inputs.A.mul_(1e7)
    inputs.B.mul_(1e-8)
    return inputs


INPUTS = {
    "fp32 adapters, tiny q": tiny_q,
    "fp32 adapters, tiny B": tiny_B,
    "fp32 adapters, p = 80,000": large_p,
    "fp32 adapters, q = 10^7": large_q,
    "fp32 adapters, A near 10^6": lambda: large_A(FP32),
    "bf16 adapters, A near 10^6": lambda: large_A(BF16),
    "fp16 adapters, p = 40,000, s = 2": lambda: large_p(FP16, 200.0, 2.0),
    "fp16 adapters, p = 40,000, s = -2": lambda: large_p(FP16, 200.0, -2.0),
    "fp16 adapters, s = 0": lambda: large_p(FP16, 200.0, 0.0),
}


QUICK = [
    "fp32 adapters, tiny q",
    "fp32 adapters, p = 80,000",
    "bf16 adapters, A near 10^6",
    "fp16 adapters, p = 40,000, s = 2",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", quick(INPUTS, *QUICK))
def test_values_that_fp16_cannot_hold_do_not_spoil_the_results(name, path):
    inputs = INPUTS[name]()
    ours, torchs, truth = run(path, inputs), gradients(inputs), oracle(inputs)
    for result in ("y", "dx", "dA", "dB"):
        assert torch.isfinite(torchs[result]).all(), "the case is none: unfused torch overflows"
        extra = split_eps(inputs)
        assert_within_budget(result, ours[result], torchs[result], truth[result], extra=extra)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("adapter", quick([FP16, FP32], FP16), ids=str)
def test_the_scale_of_dropout_overflows_nothing(adapter, path):
    inputs = made(adapter)
    # q is 104 * 50 * 10 = 52,000; with the kept entries' scale of 4 it would be beyond fp16.
    inputs.s = 1.0
    inputs.dy.fill_(50)
    inputs.B.fill_(10)
    inputs.A.fill_(1e-3)
    inputs.x.mul_(0.01)
    results = run(path, inputs, dropout=0.75)
    assert all(torch.isfinite(result).all() for result in results.values())


def test_gradients_of_fp32_adapters_are_nearly_as_good_as_in_fp32():
    inputs = tiny_q()
    ours, truth = run("kernels", inputs), oracle(inputs)
    in_fp32 = gradients(inputs.to(FP32))
    for name in ("dA", "dB"):
        assert_within_budget(name, ours[name], in_fp32[name], truth[name], extra=split_eps(inputs))


@pytest.mark.parametrize("bits", quick([0x7FFFFFFF, 0x7F800000], 0x7FFFFFFF), ids=["a GPU's NaN", "infinity"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_is_not_hidden(bits):
    inputs = made(FP32)
    inputs.A.view(torch.int32)[0, 0] = bits
    inputs.B.view(torch.int32)[0, 0] = bits
    results = run("kernels", inputs)
    assert not torch.isfinite(results["y"]).all(dim=1).any()
    assert not torch.isfinite(results["dx"]).all(dim=1).any()
