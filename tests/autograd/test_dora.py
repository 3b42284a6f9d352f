"""DoRA's passes: numbers against fp64, the norm where it cancels, what is saved, and further derivatives."""

import itertools
import warnings

import pytest
import torch

from fastlora import set_backend
from fastlora.accounting.activations import saved_bytes
from fastlora.autograd.dora import dora_linear
from fastlora.formula import oracle
from fastlora.measuring.errors import assert_within_budget, dora_gradients, split_eps
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import dora
from tests.cases import quick_rows

exhaustive = pytest.mark.exhaustive
FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def magnitudes(inputs):
    """An m [N] that is away from its start, one of it negative."""
    m = inputs.W.double().norm(dim=1) * (1 + 0.3 * torch.randn(len(inputs.W)))
    m[0] *= -1
    return m.to(inputs.A.dtype)


def ours(inputs, m, **options):
    x, A, B, m = (t.clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B, m))
    y = dora_linear(x, inputs.W, inputs.b, A, B, inputs.s, m, **options)
    dx, dA, dB, dm = torch.autograd.grad(y, (x, A, B, m), inputs.dy)
    return {"y": y.detach(), "dx": dx, "dA": dA, "dB": dB, "dm": dm}


def assert_right(inputs):
    m = magnitudes(inputs)
    torchs, truth = dora_gradients(inputs, m), dora_gradients(inputs.to(FP64), m.double())
    for name, found in ours(inputs, m).items():
        assert found.dtype == torchs[name].dtype or name == "y"
        assert_within_budget(name, found, torchs[name], truth[name], extra=split_eps(inputs))


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype", "bias"),
    [
        (FP32, FP32, True),
        (BF16, FP32, False),
        pytest.param(FP16, FP32, True, marks=exhaustive),
        pytest.param(FP16, FP16, False, marks=exhaustive),
        pytest.param(BF16, BF16, True, marks=exhaustive),
    ],
    ids=str,
)
def test_output_and_gradients_are_right(dtype, adapter_dtype, bias):
    assert_right(random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=adapter_dtype, bias=bias))


def test_fp64_is_the_formula_itself():
    inputs = random_inputs(37, 29, 43, 5, dtype=FP64)
    m = magnitudes(inputs)
    torch.testing.assert_close(ours(inputs, m), dora_gradients(inputs, m))


def test_chunks_of_rows_make_no_difference(monkeypatch):
    monkeypatch.setitem(dora._CHUNK, "cpu", 100)
    assert_right(random_inputs(37, 29, 43, 5, dtype=BF16, adapter_dtype=FP32))
    assert_right(random_inputs(37, 29, 43, 5))


@pytest.mark.parametrize(
    ("shape", "dtype", "adapter_dtype"),
    quick_rows(
        [
            ((19, 21, 23, 3), FP16, FP32),
            ((19, 21, 23, 3), FP16, FP16),
            ((70, 37, 90, 24), FP32, FP32),
            ((5, 9, 7, 1), FP32, FP32),
            ((20, 40, 520, 5), FP16, FP32),
        ],
        ((19, 21, 23, 3), FP16, FP32),
    ),
    ids=str,
)
def test_the_kernels_scale_columns_themselves(shape, dtype, adapter_dtype, monkeypatch):
    for name in ("scaled", "column_sums", "row_norms"):
        monkeypatch.delattr(dora, name)
    with set_backend("triton"):
        assert_right(random_inputs(*shape, dtype=dtype, adapter_dtype=adapter_dtype))


@pytest.mark.parametrize("removed", [pytest.param(0.9, marks=exhaustive), 0.999])
def test_the_norm_is_exact_where_an_update_removes_a_row(removed):
    torch.manual_seed(0)
    B, A = torch.randn(64, 16, dtype=FP64), torch.randn(16, 512, dtype=FP64) / 16
    W = (B @ A).float()
    truth = torch.linalg.vector_norm(W.double() - removed * (B.float().double() @ A.float().double()), dim=1)
    naive = torch.linalg.vector_norm(W - removed * (B.float() @ A.float()), dim=1)
    n = dora.row_norms(W, A.float(), B.float(), -removed)
    assert_within_budget("n", n, naive, truth)


def test_a_row_of_zeros_gives_the_bias_and_no_nan():
    inputs = random_inputs(5, 6, 4, 2)
    inputs.W[1], inputs.B[1] = 0, 0
    found = ours(inputs, magnitudes(inputs))
    assert all(value.isfinite().all() for value in found.values())
    assert torch.equal(found["y"][:, 1], inputs.b[1].expand(5))
    assert found["dm"][1] == 0


@pytest.mark.parametrize("setting", ["auto", pytest.param("triton", marks=exhaustive)])
def test_one_tensor_of_the_outputs_size_is_saved_and_none_where_m_is_frozen(setting):
    M, K, N, r = 64, 16, 48, 2
    inputs = random_inputs(M, K, N, r)
    x = inputs.x.requires_grad_()
    for trained in (True, False):
        A, B, m = inputs.A.requires_grad_(), inputs.B, magnitudes(inputs).requires_grad_(trained)
        own = (inputs.W, inputs.b, A, B, m)
        with set_backend(setting):
            found = saved_bytes(lambda o=own: dora_linear(x, *o[:4], 0.5, o[4]), own)
        assert found == x.nbytes + 4 * (M * r + N) + trained * 4 * M * N


def test_dropout_falls_on_the_low_rank_branch_alone():
    inputs = random_inputs(40, 29, 43, 5, dtype=FP64)
    inputs.x.fill_(1.0)
    m = magnitudes(inputs)
    A0 = torch.zeros_like(inputs.A)
    n = torch.linalg.vector_norm(inputs.W, dim=1)
    y = dora_linear(inputs.x, inputs.W, None, A0, inputs.B, inputs.s, m, dropout=0.5)
    torch.testing.assert_close(y, (inputs.x @ inputs.W.t()) * (m / n))  # no mask on x Wᵀ
    torch.manual_seed(1)
    found = ours(inputs, m, dropout=0.5)
    torch.manual_seed(1)
    again = ours(inputs, m, dropout=0.5)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.allclose(found["y"], ours(inputs, m)["y"])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_can_be_differentiated_again(dropout):
    inputs = random_inputs(7, 5, 6, 3, dtype=FP64)
    m = magnitudes(inputs)
    leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B, m)]
    n = torch.linalg.vector_norm(inputs.W + inputs.s * inputs.B @ inputs.A, dim=1)
    torch.manual_seed(2)
    x, A, B, m = leaves
    y = dora_linear(x, inputs.W, inputs.b, A, B, inputs.s, m, dropout=dropout)
    found = torch.autograd.grad(y, leaves, inputs.dy, create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in found), leaves)
    if not dropout:
        y = oracle.dora(x, inputs.W, inputs.b, A, B, inputs.s, m, n=n)
        first = torch.autograd.grad(y, leaves, inputs.dy, create_graph=True)
        wanted = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        for one, other in itertools.zip_longest(twice, wanted):
            torch.testing.assert_close(one, other)
    assert all(each.abs().sum() > 0 for each in twice)


def test_autocast_computes_in_its_dtype():
    inputs = random_inputs(9, 8, 7, 2)
    m = magnitudes(inputs)
    with torch.autocast("cpu", BF16):
        y = dora_linear(inputs.x, inputs.W, inputs.b, inputs.A, inputs.B, inputs.s, m)
    assert y.dtype == BF16
    truth = oracle.dora(inputs.x, inputs.W, inputs.b, inputs.A, inputs.B, inputs.s, m)
    assert (y.float() - truth).norm() < 0.02 * truth.norm()


def test_transforms_and_traces_are_computed_by_separate_operations():
    inputs = random_inputs(4, 8, 7, 2, dtype=FP64)
    m = magnitudes(inputs)

    def apply(x):
        return dora_linear(x, inputs.W, inputs.b, inputs.A, inputs.B, inputs.s, m)

    torch.testing.assert_close(torch.func.vmap(apply)(inputs.x), apply(inputs.x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(apply, inputs.x)
    torch.testing.assert_close(traced(inputs.x), apply(inputs.x))


def test_wrong_magnitudes_are_refused():
    inputs = random_inputs(4, 8, 7, 2)
    with pytest.raises(ValueError, match=r"m must be \[N=7\]"):
        dora_linear(inputs.x, inputs.W, None, inputs.A, inputs.B, 1.0, torch.ones(6))


@pytest.mark.parametrize("trains_m", [True, False])
def test_a_new_adapters_output_is_the_base_layers_to_the_last_bit(trains_m):
    x, W, b = torch.randn(10, 1000), torch.randn(96, 1000), torch.randn(96)
    A, B = torch.randn(4, 1000), torch.zeros(96, 4)
    m = torch.linalg.norm(W, dim=1).requires_grad_(trains_m)
    assert torch.equal(dora_linear(x, W, b, A, B, 2.0, m), torch.nn.functional.linear(x, W, b))


@pytest.mark.parametrize("bias", [True, False])
def test_training_m_or_not_gives_the_same_bits(bias):
    inputs = random_inputs(37, 29, 43, 5, bias=bias)
    m = magnitudes(inputs)
    operands = (inputs.x, inputs.W, inputs.b, inputs.A, inputs.B, inputs.s)
    assert torch.equal(dora_linear(*operands, m), dora_linear(*operands, m.clone().requires_grad_()))
