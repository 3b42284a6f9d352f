"""DoRA's launches: norms and sums against fp64, whatever the strides; which gradients are computed."""

import itertools

import pytest
import torch

from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.measuring.errors import assert_within_budget, relative_error
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import dora, fused, fused_dora
from tests.cases import quick_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP64, FP32, FP16 = torch.float64, torch.float32, torch.float16

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize(
    ("shape", "dtype", "adapter_dtype"),
    quick_rows(
        [((70, 90, 40), FP16, FP32), ((5, 9, 1), FP32, FP32), ((33, 64, 16), FP16, FP16)],
        ((5, 9, 1), FP32, FP32),
    ),
    ids=str,
)
def test_norms_are_within_the_budget_for_any_strides(shape, dtype, adapter_dtype):
    N, K, r = shape
    i = random_inputs(1, K, N, r, dtype=dtype, adapter_dtype=adapter_dtype, device=DEVICE)
    wide = i.to(FP64)
    truth = dora.row_norms(wide.W, wide.A, wide.B, i.s)
    torchs = dora.row_norms(i.W, i.A, i.B, i.s)
    for W in (i.W, i.W.t().contiguous().t()):
        assert_within_budget("n", fused_dora.row_norms(W, i.A, i.B, i.s), torchs, truth)


def test_the_norm_is_exact_where_an_update_removes_a_row():
    removed = 0.999
    torch.manual_seed(0)
    B, A = torch.randn(8, 4, dtype=FP64), torch.randn(4, 70, dtype=FP64) / 16
    W, A, B = ((B @ A).float(), A.float(), B.float())
    truth = torch.linalg.vector_norm(W.double() - removed * (B.double() @ A.double()), dim=1)
    naive = torch.linalg.vector_norm(W - removed * (B @ A), dim=1)
    assert_within_budget("n", fused_dora.row_norms(W, A, B, -removed), naive, truth)


@pytest.mark.parametrize(
    ("M", "N", "dtype"), quick_rows([(1030, 70, FP16), (5, 9, FP32)], (5, 9, FP32)), ids=str
)
def test_sums_are_within_the_budget_for_any_strides(M, N, dtype):
    dy, z = torch.randn(2, M, N, device=DEVICE).to(dtype)
    truth, torchs = (dy.double() * z.double()).sum(0), (dy.float() * z.float()).sum(0)
    for rows in (dy, dy.t().contiguous().t()):
        assert_within_budget("sums", fused_dora.column_sums(rows, z), torchs, truth)


def test_only_what_is_asked_for_is_computed_and_it_has_the_same_bits():
    i = random_inputs(5, 9, 11, 2, device=DEVICE)
    c = torch.rand(11, device=DEVICE) - 0.3
    o = i.call()
    y, z, p = fused_dora.forward(o, c, True)
    again, none, _ = fused_dora.forward(o, c, False)
    assert none is None
    assert torch.equal(y, again)
    assert torch.equal(z, fused.forward(o._replace(b=None))[0])
    whole = fused_dora.backward(o, i.dy, p, c, EVERYTHING)
    for needs in itertools.starmap(Needs, itertools.product((True, False), repeat=3)):
        for found, needed, wanted in zip(
            fused_dora.backward(o, i.dy, p, c, needs), needs, whole, strict=True
        ):
            assert (found is None) == (not needed)
            assert found is None or torch.equal(found, wanted)


@pytest.mark.exhaustive
def test_dropout_draws_the_mask_of_the_plain_kernels():
    i = random_inputs(20, 30, 43, 5, device=DEVICE)
    o = i.call(0.3, torch.tensor([7], device=DEVICE))
    ones = torch.ones(43, device=DEVICE)
    y, _, p = fused_dora.forward(o, ones, False)
    plain_y, plain_p = fused.forward(o)
    assert torch.equal(p, plain_p)
    assert torch.equal(y, plain_y)
    found, wanted = fused_dora.backward(o, i.dy, p, ones, EVERYTHING), fused.backward(o, i.dy, p, EVERYTHING)
    assert all(relative_error(one, other) == 0 for one, other in zip(found, wanted, strict=True))
