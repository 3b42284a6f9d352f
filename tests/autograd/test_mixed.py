"""Rows that take different adapters: equal to each run alone, gradients and masks included."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastlora.autograd.mixed import mixed_lora_linear
from fastlora.formula import oracle
from fastlora.formula.runs import Runs
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes.mixed import Factors

N, K = 24, 40
# Runs; an adapter of several short runs, whose rows are gathered; none at all; one adapter for everything.
BATCHES = {
    "runs": [0] * 40 + [1] * 50 + [-1] * 7 + [2],
    "gathered": [0, 1, 0, 2, -1, 0, 1, 1, 2, 0],
    "both": [0] * 70 + [1] + [0] * 40 + [1, -1, 1],
    "one": [0] * 5,
    "none": [-1] * 4,
}


def call(x, W, b, ids, factors, dropout=0.0):
    found = [Factors(A, B, 0.5 + place, dropout) for place, (A, B) in enumerate(factors)]
    return mixed_lora_linear(x, W, b, Runs(ids), found[: max(ids) + 1])


def inputs(ids, dtype=torch.float32, adapter_dtype=None, bias=True):
    x = torch.randn(len(ids), K, dtype=dtype)
    W = torch.randn(N, K, dtype=dtype) / K**0.5
    b = torch.randn(N, dtype=dtype) if bias else None
    wide = adapter_dtype or dtype
    factors = [(torch.randn(r, K, dtype=wide) / K**0.5, torch.randn(N, r, dtype=wide)) for r in (2, 3, 5)]
    return x, W, b, factors, torch.randn(len(ids), N, dtype=dtype)


def alone(x, W, b, ids, factors, dy, dtype=None):
    """y and gradients of each row alone, by torch's own differentiation."""
    change = (lambda t: t.to(dtype)) if dtype else (lambda t: t)
    x = change(x).clone().requires_grad_()
    factors = [tuple(change(f).clone().requires_grad_() for f in pair) for pair in factors]
    y = torch.cat(
        [
            oracle.unfused(
                x[row : row + 1], change(W), None if b is None else change(b), *factors[one], 0.5 + one
            )
            if one >= 0
            else torch.nn.functional.linear(x[row : row + 1], change(W), None if b is None else change(b))
            for row, one in enumerate(ids)
        ]
    )
    flat = [f for pair in factors for f in pair]
    return [y.detach(), *torch.autograd.grad(y, (x, *flat), change(dy), allow_unused=True)]


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.float16, None)],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", BATCHES)
def test_each_row_is_computed_as_alone(kind, bias, dtype, adapter_dtype, poisoned):
    ids = BATCHES[kind]
    x, W, b, factors, dy = inputs(ids, dtype, adapter_dtype, bias)
    own = [x.clone().requires_grad_(), *(f.clone().requires_grad_() for pair in factors for f in pair)]
    y = call(own[0], W, b, ids, list(zip(own[1::2], own[2::2], strict=True)))
    found = [y.detach(), *torch.autograd.grad(y, own, dy, allow_unused=True)]
    torchs, truths = alone(x, W, b, ids, factors, dy), alone(x, W, b, ids, factors, dy, torch.float64)
    for place, (ours, unfused, truth) in enumerate(zip(found, torchs, truths, strict=True)):
        if truth is None:
            assert ours is None, f"adapter {(place - 2) // 2} has no row, but a gradient"
            continue
        extra = torch.finfo(x.dtype).eps ** 2 if adapter_dtype else 0.0
        assert_within_budget(str(place), ours, unfused, truth, extra=extra)


def test_a_mask_is_the_same_forward_and_backward():
    ids = BATCHES["both"]
    x, W, _, factors, _ = inputs(ids, torch.float64)
    x.requires_grad_()
    # With W = 0 and the same seeds, y is linear in x: its derivative in the direction x is y itself.
    torch.manual_seed(3)
    y = call(x, torch.zeros_like(W), None, ids, factors, dropout=0.3)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close((dx * x).sum().detach(), (dy * y).sum().detach())
    assert (y[:70] != call(x, torch.zeros_like(W), None, ids, factors, dropout=0.3)[:70]).any()


@pytest.mark.exhaustive
def test_gradients_can_be_differentiated_again():
    ids = [0, 1, 0, -1, 1]
    x, W, b, factors, _ = inputs(ids, torch.float64)
    flat = [f.clone().requires_grad_() for pair in factors[:2] for f in pair]

    def ours(x, *flat):
        return call(x, W, b, ids, list(zip(flat[::2], flat[1::2], strict=True)))

    assert torch.autograd.gradgradcheck(ours, (x.requires_grad_(), *flat))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_bits(reentrant):
    ids = BATCHES["both"]
    x, W, b, factors, dy = inputs(ids)
    leaves = [f.requires_grad_() for pair in factors for f in pair][:4]
    x.requires_grad_()
    plain = torch.autograd.grad(call(x, W, b, ids, factors), (x, *leaves), dy)
    y = checkpoint(lambda x: call(x, W, b, ids, factors), x, use_reentrant=reentrant)
    y.backward(dy)
    for one, other in zip(plain, (x, *leaves), strict=True):
        assert torch.equal(one, other.grad)


def test_nothing_of_x_is_saved_twice():
    ids = BATCHES["runs"]
    x, W, b, factors, _ = inputs(ids)
    for pair in factors:
        for factor in pair:
            factor.requires_grad_()
    saved = {}
    pack = lambda t: saved.setdefault(t.data_ptr(), t) is not None and t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(x, W, b, ids, factors)
    known = {t.data_ptr() for t in (x, W, b, *(f for pair in factors for f in pair))}
    new = sum(t.nbytes for pointer, t in saved.items() if pointer not in known)
    ranks = (2, 3, 5)
    assert new == 4 * sum(ranks[one] for one in ids if one >= 0)


def test_compiled_whole():
    ids = BATCHES["both"]
    x, W, b, factors, _ = inputs(ids)
    eager = call(x, W, b, ids, factors)
    compiled = torch.compile(lambda x: call(x, W, b, ids, factors), backend="aot_eager", fullgraph=True)
    truth = call(*(t.double() for t in (x, W, b)), ids, [(A.double(), B.double()) for A, B in factors])
    assert_within_budget("y", compiled(x), eager, truth)


def test_rows_that_cannot_be_divided_are_refused():
    x, W, b, factors, _ = inputs([0, 1, 0])
    with pytest.raises(ValueError, match=r"x must have a multiple of 2 rows, the batch's items; got 3"):
        call(x, W, b, [0, 1], factors)
