"""Projections that share x: equal to each computed alone, gradients and masks included."""

import pytest
import torch
from torch.nn import functional as F

from fastlora import set_backend
from fastlora.autograd.function import lora_linear
from fastlora.autograd.grouped import grouped_lora_linear
from fastlora.formula import oracle
from fastlora.formula.grouped import Projection
from fastlora.measuring.errors import assert_within_budget

K = 40
# Different sizes, ranks and scalings; one without a bias, one without an update.
SHAPES = ((24, 3, 0.5, True), (12, 5, 2.0, False), (16, 0, 1.0, True))


def projections(dtype=torch.float32, adapter_dtype=None, dropout=0.0, K=K):
    wide = adapter_dtype or dtype
    found = []
    for N, r, s, bias in SHAPES:
        W, b = (torch.randn(N, K) / K**0.5).to(dtype), torch.randn(N).to(dtype) if bias else None
        if not r:
            found.append(Projection(W, b))
            continue
        A, B = (torch.randn(r, K) / K**0.5).to(wide), torch.randn(N, r).to(wide)
        found.append(Projection(W, b, A.requires_grad_(), B.requires_grad_(), s, dropout))
    return found


def factors(members):
    return [factor for one in members if one.A is not None for factor in (one.A, one.B)]


def alone(x, members):
    return [
        F.linear(x, one.W, one.b)
        if one.A is None
        else lora_linear(x, one.W, one.b, one.A, one.B, one.s, dropout=one.dropout)
        for one in members
    ]


def unfused(x, members):
    return [
        F.linear(x, one.W, one.b) if one.A is None else oracle.unfused(x, one.W, one.b, one.A, one.B, one.s)
        for one in members
    ]


def results(compute, x, members, dys):
    x = x.detach().clone().requires_grad_()
    ys = compute(x, members)
    return [y.detach() for y in ys] + list(torch.autograd.grad(ys, (x, *factors(members)), dys))


def widened(members):
    return [
        Projection(*(None if t is None else t.detach().double() for t in one[:4]), *one[4:])
        for one in members
    ]


def assert_equal_to_alone(x, members, dys, dtype=torch.float32):
    ours, torchs = results(grouped_lora_linear, x, members, dys), results(unfused, x, members, dys)
    wide = widened(members)
    for factor in factors(wide):
        factor.requires_grad_()
    truths = results(unfused, x.double(), wide, [dy.double() for dy in dys])
    extra = torch.finfo(dtype).eps ** 2
    for place, (one, other, truth) in enumerate(zip(ours, torchs, truths, strict=True)):
        assert_within_budget(str(place), one, other, truth, extra=extra)


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.float16, None)],
)
@pytest.mark.parametrize("shape", [(7,), (2, 3), ()])
def test_each_member_is_computed_as_alone(dtype, adapter_dtype, shape, poisoned):
    members = projections(dtype, adapter_dtype)
    x = torch.randn(*shape, K).to(dtype)
    dys = [torch.randn(*shape, one.W.shape[0]).to(dtype) for one in members]
    assert_equal_to_alone(x, members, dys, dtype)


def test_the_kernels_take_members_one_after_the_other():
    members = projections(torch.float32)
    x, dys = torch.randn(5, K), [torch.randn(5, one.W.shape[0]) for one in members]
    with set_backend("triton"):
        assert_equal_to_alone(x, members, dys)


def test_masks_are_those_of_members_called_in_turn():
    members = projections(dropout=0.3)
    x, dys = torch.randn(6, K), [torch.randn(6, one.W.shape[0]) for one in members]
    torch.manual_seed(1)
    ours = results(grouped_lora_linear, x, members, dys)
    torch.manual_seed(1)
    theirs = results(alone, x, members, dys)
    torch.manual_seed(2)
    others = results(grouped_lora_linear, x, members, dys)
    for one, other in zip(ours, theirs, strict=True):
        assert_within_budget("masked", one, other, other.double())
    assert not torch.equal(ours[0], others[0])


def test_outputs_that_nothing_used_and_factors_that_are_frozen_take_no_gradient():
    members = projections()
    members[1].A.requires_grad_(False)
    x = torch.randn(5, K, requires_grad=True)
    y, *_ = grouped_lora_linear(x, members)
    y.sum().backward()
    assert members[0].A.grad is not None
    assert x.grad is not None
    assert members[1].A.grad is None
    assert members[1].B.grad is None


def test_what_is_not_trained_is_not_part_of_the_graph():
    members = projections()
    members[0].A.requires_grad_(False), members[0].B.requires_grad_(False)
    ys = grouped_lora_linear(torch.randn(5, K), members)
    assert [y.requires_grad for y in ys] == [False, True, False]


def test_x_is_saved_once_and_p_once_for_all():
    members = projections()
    x = torch.randn(9, K, requires_grad=True)
    saved = {}
    pack = lambda t: saved.setdefault(t.data_ptr(), t) is not None and t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        grouped_lora_linear(x, members)
    known = {t.data_ptr() for t in (x, *(t for one in members for t in one[:4] if t is not None))}
    assert sum(t.nbytes for pointer, t in saved.items() if pointer not in known) == 4 * 9 * (3 + 5)
    assert x.data_ptr() in saved


def test_an_x_that_is_changed_before_the_backward_pass_is_an_error():
    x = torch.randn(5, K, requires_grad=True) * 1
    ys = grouped_lora_linear(x, projections())
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(y.sum() for y in ys).backward()


def test_gradients_can_be_differentiated_again():
    members = [one._replace(W=one.W[:2], b=None) for one in projections(torch.float64, K=3)]
    members = [
        one if one.A is None else one._replace(B=one.B.detach()[:2].requires_grad_()) for one in members
    ]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    flat = factors(members)

    def ours(x, *flat):
        pairs = iter(zip(flat[::2], flat[1::2], strict=True))
        own = [
            one if one.A is None else one._replace(**dict(zip("AB", next(pairs), strict=True)))
            for one in members
        ]
        return grouped_lora_linear(x * 1, own)

    assert torch.autograd.gradgradcheck(ours, (x, *flat))


def test_under_autocast():
    members = projections()
    x = torch.randn(4, K, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = grouped_lora_linear(x, members), alone(x, members)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.bfloat16
            assert_within_budget("y", one.detach(), other.detach(), other.detach().double())
        sum(y.float().sum() for y in ours).backward()
    assert x.grad.dtype == torch.float32


def test_a_mode_that_sees_operators_sees_one_a_pass():
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    x, members = torch.randn(5, K, requires_grad=True), projections()
    with Seen():
        sum(y.sum() for y in grouped_lora_linear(x, members)).backward()
    ours = [name for name in names if name.startswith("fastlora::")]
    assert ours == ["fastlora::lora_group_forward", "fastlora::lora_group_backward"]


def test_flops_are_those_of_the_members():
    from torch.utils.flop_counter import FlopCounterMode

    from fastlora import flop_formulas

    x, members = torch.randn(5, K, requires_grad=True), projections()
    counts = []
    for compute in (grouped_lora_linear, alone):
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            sum(y.sum() for y in compute(x, members)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_operators_are_sound():
    from fastlora.autograd.grouped_operators import _flat, lora_group_backward, lora_group_forward
    from fastlora.formula.grouped import bundle

    o = bundle(torch.randn(5, K), projections())
    torch.library.opcheck(
        lora_group_forward, (o.x, *_flat(o), "torch"), test_utils=("test_schema", "test_faketensor")
    )
    p = lora_group_forward(o.x, *_flat(o), "torch")[3:]
    dys = [torch.randn(5, 24), None, torch.randn(5, 16)]
    needs = (True, [True, True, False], [True, False, False])
    given = (dys, p, o.x, *_flat(o), *needs, "torch")
    torch.library.opcheck(lora_group_backward, given, test_utils=("test_schema", "test_faketensor"))
