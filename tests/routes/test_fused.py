"""The kernels against fp64: on a GPU where there is one, in Triton's interpreter elsewhere."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.measuring.errors import assert_within_budget, gradients, oracle, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import cpu, fused
from tests.cases import quick, quick_rows

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter multiplies bf16 wrongly, so bf16 waits for a GPU.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * ON_GPU
MIXED = [(torch.float16, torch.float32), (torch.float32, torch.float16)] + [
    (torch.bfloat16, torch.float32)
] * ON_GPU

# (M, K, N, r): tile borders from both sides, one row, one column, rank beyond a block, aligned and not.
SHAPES = [
    (64, 128, 128, 16),
    (1, 33, 5, 1),
    (70, 130, 150, 3),
    (33, 65, 63, 8),
    (97, 64, 200, 24),
    (40, 784, 10, 16),
    (31, 1, 70, 2),
    (129, 72, 1, 4),
    (66, 96, 136, 64),
    (45, 70, 67, 128),
]

# One row of an odd shape, ragged tiles, rank beyond a block; the interpreter takes long.
QUICK = [(1, 33, 5, 1), (70, 130, 150, 3), (45, 70, 67, 128)]

pytestmark = pytest.mark.usefixtures("poisoned")


# Which of dx, dA, dB: each alone.
ALONE = [(True, False, False), (False, True, False), (False, False, True)]


def run(ops: Inputs, needs: Needs = EVERYTHING) -> dict[str, torch.Tensor | None]:
    y, p = fused.forward(ops.call())
    dx, dA, dB = fused.backward(ops.call(), ops.dy, p, needs)
    return {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}


def assert_matches_fp64(ops: Inputs) -> None:
    ours, torchs, truth = run(ops), gradients(ops), oracle(ops)
    for name, result in ours.items():
        assert_within_budget(name, result, torchs[name], truth[name], extra=split_eps(ops))


@pytest.mark.parametrize("shape", quick(SHAPES, *QUICK), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_within_the_budget(shape, dtype):
    assert_matches_fp64(random_inputs(*shape, dtype=dtype, device=DEVICE))


def shapes_that_nobody_listed(count):
    """A test of so many shapes drawn by Hypothesis, the same every time."""

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        M=st.integers(2, 140),
        K=st.integers(8, 200),
        N=st.integers(8, 200),
        r=st.integers(2, 70),
        dtype=st.sampled_from(DTYPES),
        bias=st.booleans(),
    )
    def holds(M, K, N, r, dtype, bias):
        assert_matches_fp64(random_inputs(M, K, N, r, dtype=dtype, bias=bias, device=DEVICE))

    return holds


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", quick([3, 20], 3))
def test_shapes_that_nobody_listed_are_within_the_budget_too(count):
    shapes_that_nobody_listed(count)()


@pytest.mark.parametrize(("dtype", "adapter_dtype"), quick_rows(MIXED, MIXED[0]), ids=str)
@pytest.mark.parametrize("r", quick([1, 16, 40], 16))
def test_adapters_may_be_wider_or_narrower_than_the_base(dtype, adapter_dtype, r):
    ops = random_inputs(70, 130, 90, r, dtype=dtype, adapter_dtype=adapter_dtype, device=DEVICE)
    assert_matches_fp64(ops)
    ours = run(ops)
    assert ours["y"].dtype == ours["dx"].dtype == dtype
    assert ours["dA"].dtype == ours["dB"].dtype == adapter_dtype


def test_wide_adapters_get_gradients_far_below_the_rounding_of_x():
    ops = random_inputs(64, 128, 96, 16, dtype=torch.float16, adapter_dtype=torch.float32, device=DEVICE)
    ours, truth = run(ops), oracle(ops)
    for name in ("dA", "dB"):
        error = (ours[name].double() - truth[name]).norm() / truth[name].norm()
        assert error < torch.finfo(torch.float16).eps / 64


def test_a_layer_without_bias_adds_none():
    assert_matches_fp64(random_inputs(40, 70, 90, 5, bias=False, device=DEVICE))


def strided(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """The same values in another memory layout."""
    rows, columns = tensor.shape
    if how == "transposed":
        return tensor.t().contiguous().t()
    if how == "sliced":
        wide = tensor.new_full((rows, 2 * columns + 3), float("nan"))
        wide[:, 1 : 2 * columns : 2] = tensor
        return wide[:, 1 : 2 * columns : 2]
    # One element off the 16 bytes that TMA wants.
    flat = tensor.new_full((rows * columns + 1,), float("nan"))
    flat[1:] = tensor.flatten()
    return flat[1:].view(rows, columns)


@pytest.mark.parametrize("how", quick(["transposed", "sliced", "shifted"], "sliced"))
@pytest.mark.parametrize("name", ["x", "W", "A", "B", "dy"])
def test_every_operand_may_have_any_strides(name, how):
    ops = random_inputs(40, 72, 80, 6, device=DEVICE)
    setattr(ops, name, strided(getattr(ops, name), how))
    assert_matches_fp64(ops)


def test_expanded_rows_and_gradients_are_read_through_zero_strides():
    ops = random_inputs(40, 72, 80, 6, device=DEVICE)
    ops.x = ops.x[:1].expand(40, 72)
    ops.dy = ops.dy[0, 0].expand(40, 80)
    assert_matches_fp64(ops)


@pytest.mark.parametrize("need", quick(itertools.product([False, True], repeat=3), *ALONE), ids=str)
def test_only_what_is_asked_for_is_computed_and_it_is_the_same(need):
    ops = random_inputs(40, 72, 80, 20, device=DEVICE)
    names = ("dx", "dA", "dB")
    whole, part = run(ops), run(ops, Needs(*need))
    for name, wanted in zip(names, need, strict=True):
        assert torch.equal(part[name], whole[name]) if wanted else part[name] is None


def test_the_same_call_gives_the_same_bits():
    ops = random_inputs(40, 72, 80, 40, dtype=torch.float16, device=DEVICE)
    first, second = run(ops), run(ops)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operands_are_never_written_to():
    ops = random_inputs(33, 65, 63, 8, device=DEVICE)
    before = {name: tensor.clone() for name, tensor in vars(ops).items() if isinstance(tensor, torch.Tensor)}
    run(ops)
    assert all(torch.equal(getattr(ops, name), tensor) for name, tensor in before.items())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_of_infinities_stays_in_its_row():
    ops = random_inputs(40, 72, 80, 6, device=DEVICE)
    ops.x[3] = float("inf")
    y = run(ops)["y"]
    assert torch.isfinite(y[:3]).all()
    assert torch.isfinite(y[4:]).all()


def test_the_reference_and_the_kernels_return_the_same_dtypes_and_shapes():
    ops = random_inputs(5, 7, 9, 3, dtype=torch.float16, adapter_dtype=torch.float32, device=DEVICE)
    y, p = cpu.forward(ops.call())
    ours = run(ops)
    assert (ours["y"].dtype, ours["y"].shape) == (y.dtype, y.shape)
    assert (ours["p"].dtype, ours["p"].shape) == (p.dtype, p.shape)


@pytest.mark.cuda
@pytest.mark.skipif(not ON_GPU, reason="offsets past 2^31 elements need a GPU's memory")
def test_offsets_past_two_to_the_31_are_right():
    M, K = 70_000, 32_768
    ops = random_inputs(M, K, 16, 4, dtype=torch.bfloat16, device=DEVICE)
    y, p = fused.forward(ops.call())
    dx, _, _ = fused.backward(ops.call(), ops.dy, p, EVERYTHING)
    last = Inputs(ops.x[-64:], ops.W, ops.b, ops.A, ops.B, ops.s, ops.dy[-64:])
    torchs, truth = gradients(last), oracle(last)
    assert_within_budget("y", y[-64:], torchs["y"], truth["y"])
    assert_within_budget("dx", dx[-64:], torchs["dx"], truth["dx"])
