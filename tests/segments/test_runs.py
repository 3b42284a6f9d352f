"""Rows that choose their operands, held to the readable formula and to fp64."""

import pytest
import torch

from fastlora.formula.masks import dropout_constants
from fastlora.measuring.errors import assert_within_budget
from fastlora.segments import oracle
from fastlora.segments.function import linear_by_runs
from fastlora.segments.operands import RunOperands
from fastlora.segments.plan import plan_of

E, K, N, R, T = 5, 7, 6, 3, 11
S = 0.75

CHOICES = {
    "ragged": torch.tensor(
        [[0, 3], [3, 1], [0, 1], [3, 0], [1, 3], [0, 3], [0, 1], [3, 1], [0, 3], [1, 0], [2, 0]]
    ),
    "one has all": torch.full((T, 2), 3),
    "runs of one row": torch.arange(5).view(5, 1),
    "some chose none": torch.tensor([[0, E], [E, 1], [E + 2, E], [1, 0]]),
    "no rows": torch.empty(0, 2, dtype=torch.int64),
}


def operands(
    chosen,
    *,
    weighted=True,
    bias=True,
    update=True,
    transposed=False,
    dtype=torch.float64,
    adapter=None,
    device="cpu",
):
    """Random operands, drawn on the CPU; W is stored [E, K, N] where it is transposed."""
    adapter = adapter or dtype
    tokens, copies = chosen.shape

    def trained(tensor):
        return tensor.to(device).requires_grad_()

    W = torch.randn(E, K, N, dtype=dtype).transpose(1, 2) if transposed else torch.randn(E, N, K, dtype=dtype)
    A, B = (trained(torch.randn(E, *shape, dtype=adapter)) for shape in ((R, K), (N, R)))
    return RunOperands(
        x=trained(torch.randn(tokens, K, dtype=dtype)),
        W=W.to(device) / K**0.5,
        b=torch.randn(E, N, dtype=dtype).to(device) if bias else None,
        A=A if update else None,
        B=B if update else None,
        s=S,
        plan=plan_of(chosen.to(device), E),
        gathers=True,
        weights=trained(torch.rand(tokens, copies, dtype=dtype)) if weighted else None,
    )


def in_fp64(o):
    def wide(tensor):
        return None if tensor is None else tensor.detach().double().requires_grad_(tensor.requires_grad)

    fields = (wide(t) for t in o[:5])
    return o._replace(**dict(zip(o._fields[:5], fields, strict=True)), weights=wide(o.weights))


def results(compute, o):
    """y and every gradient, as they come for a fixed dy."""
    given = {name: t for name, t in zip("xABw", (o.x, o.A, o.B, o.weights), strict=True) if t is not None}
    y = compute(o)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(y)
    found = torch.autograd.grad(y, tuple(given.values()), dy, allow_unused=True)
    return {"y": y.detach(), **dict(zip((f"d{name}" for name in given), found, strict=True))}


def by_formula(chosen):
    def compute(o):
        y = oracle.unfused(o.x, o.W, o.b, o.A, o.B, o.s, chosen.to(o.x.device), o.weights)
        return y if o.weights is not None else y.flatten(0, 1)[o.plan.order]

    return compute


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_runs_are_the_formula_and_its_gradients(choice, weighted, transposed, poisoned):
    chosen = CHOICES[choice]
    for options in ({}, {"bias": False}, {"update": False}):
        o = operands(chosen, weighted=weighted, transposed=transposed, dtype=torch.float32, **options)
        ours = results(linear_by_runs, o)
        torchs, truth = results(by_formula(chosen), o), results(by_formula(chosen), in_fp64(o))
        for name, value in truth.items():
            if value is not None:
                assert_within_budget(name, ours[name], torchs[name], value)


@pytest.mark.parametrize(
    ("dtype", "adapter"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_narrow_weights_under_wide_updates(dtype, adapter):
    chosen = CHOICES["ragged"]
    o = operands(chosen, dtype=getattr(torch, dtype), adapter=getattr(torch, adapter))
    ours, torchs = results(linear_by_runs, o), results(by_formula(chosen), o)
    for name, value in results(by_formula(chosen), in_fp64(o)).items():
        assert_within_budget(name, ours[name], torchs[name], value)


def test_gradients_through_dropout_are_those_of_the_mask_that_the_forward_drew():
    o = operands(CHOICES["ragged"])._replace(dropout=0.4, seed=torch.tensor([77]))

    def compute(x, A, B, weights):
        return linear_by_runs(o._replace(x=x, A=A, B=B, weights=weights))

    assert torch.autograd.gradcheck(compute, (o.x, o.A, o.B, o.weights))


def test_each_run_drops_entries_of_its_own():
    """With W = 0, A = 1 and B = 1, y counts the entries that are kept."""
    many = 4096
    chosen = torch.arange(2).repeat_interleave(many)[:, None]
    o = RunOperands(
        x=torch.ones(2 * many, 1),
        W=torch.zeros(2, 1, 1),
        b=None,
        A=torch.ones(2, 1, 1),
        B=torch.ones(2, 1, 1),
        s=1.0,
        plan=plan_of(chosen, 2),
        dropout=0.5,
        seed=torch.tensor([3]),
    )
    first, second = (linear_by_runs(o).view(2, many) / dropout_constants(0.5)[1]).bool()
    for mask in (first, second, first == second):
        assert abs(mask.float().mean() - 0.5) < 5 * 0.5 / many**0.5


def test_the_pass_saves_x_p_and_the_plan_alone():
    o = operands(CHOICES["ragged"])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_by_runs(o)
    inputs = {id(t) for t in (*o[:5], o.weights, *o.plan[:2])}
    own = [t for t in saved if id(t) not in inputs and t.untyped_storage().data_ptr() != o.x.data_ptr()]
    known = {t.untyped_storage().data_ptr() for t in (*o[:5], o.weights, *o.plan[:2])}
    (p,) = (t for t in own if t.untyped_storage().data_ptr() not in known)
    assert p.shape == (2 * T, R)


def test_only_what_is_needed_is_computed():
    o = operands(CHOICES["ragged"])
    frozen = o._replace(x=o.x.detach(), weights=o.weights.detach())
    linear_by_runs(frozen).sum().backward()
    assert [t.grad is None for t in (o.x, o.weights, o.A, o.B)] == [True, True, False, False]


def test_the_same_input_gives_the_same_bits():
    o = operands(CHOICES["ragged"], dtype=torch.float32)
    first, second = results(linear_by_runs, o), results(linear_by_runs, o)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(T, K + 1)}, ValueError, r"x must have shape \[\.\.\., K=7\]; got \[11, 8\]"),
        ({"x": torch.randn(T, K)}, TypeError, "must have W's dtype torch.float64; got torch.float32"),
        ({"b": torch.randn(E, 1).double()}, ValueError, r"b must have shape \[E=5, N=6\]"),
        ({"A": torch.randn(E + 1, R, K).double()}, ValueError, r"A and B must have shapes \[E=5, r, K=7\]"),
        ({"A": torch.randn(E, R, K)}, TypeError, "B must have A's dtype torch.float32; got torch.float64"),
    ],
)  # fmt: skip
def test_operands_that_do_not_fit_are_named(change, error, message):
    with pytest.raises(error, match=message):
        linear_by_runs(operands(CHOICES["ragged"])._replace(**change))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_under_torch_compile_it_is_one_graph():
    o = operands(CHOICES["ragged"], dtype=torch.float32)
    ours = results(linear_by_runs, o)
    compiled = results(torch.compile(linear_by_runs, fullgraph=True, backend="aot_eager"), o)
    assert all(torch.equal(ours[name], compiled[name]) for name in ours)
