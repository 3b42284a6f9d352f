"""The kernel of projections that share x against fp64, in Triton's interpreter, and when it is taken."""

import pytest
import torch

from fastlora import set_backend
from fastlora.autograd.grouped import grouped_lora_linear
from fastlora.formula import oracle
from fastlora.formula.grouped import GroupNeeds, Projection, bundle, with_seeds
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes import cpu, group_fused, group_routes
from fastlora.routes.decide import Decision
from fastlora.routes.plan import Plan
from fastlora.routes.route import Route
from tests.cases import quick

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
HALF, WHOLE = torch.float16, torch.float32

pytestmark = pytest.mark.usefixtures("poisoned")


def projections(K, columns, ranks, dtype, adapter_dtype):
    """W scaled for y near 1; a bias for every other one; no update for a rank of 0."""
    found = []
    for place, (N, r) in enumerate(zip(columns, ranks, strict=True)):
        W = (torch.randn(N, K) / K**0.5).to(DEVICE, dtype)
        b = None if place % 2 else torch.randn(N).to(DEVICE, dtype)
        if not r:
            found.append(Projection(W, b))
            continue
        A, B = (torch.randn(r, K) / K**0.5), torch.randn(N, r)
        found.append(Projection(W, b, A.to(DEVICE, adapter_dtype), B.to(DEVICE, adapter_dtype), 0.5 + place))
    return found


def unfused(x, one, dtype):
    """y and p in a dtype by separate operations; p is None without an update."""
    x, (W, b, A, B) = x.to(dtype), (None if t is None else t.to(dtype) for t in one[:4])
    if A is None:
        return torch.nn.functional.linear(x, W, b), None
    return oracle.unfused(x, W, b, A, B, one.s), x @ A.t()


def assert_right(x, members, results):
    for one, y, p in zip(members, *results, strict=True):
        (y_torch, p_torch), (y_truth, p_truth) = (unfused(x, one, kind) for kind in (x.dtype, torch.float64))
        assert_within_budget("y", y, y_torch, y_truth)
        assert (p is None) == (p_truth is None)
        if p is not None:
            assert_within_budget("p", p, p_torch, p_truth)


# (M, K, columns, ranks): split tiles of p and of y, and a member without an update; two members, ranks beyond
# a block; ragged tiles.
SHAPES = [
    SPLIT := (20, 520, (30, 20, 8), (4, 0, 2)),
    (33, 64, (10, 66), (40, 16)),
    (70, 130, (70, 24, 65), (5, 0, 3)),
    (40, 1040, (30, 20, 8), (4, 9, 2)),
    (129, 72, (128, 64, 64), (16, 16, 16)),
    (1, 33, (5, 1, 2), (1, 2, 1)),
]
# Many columns for few rows: dx tiles are split within a projection and between two, those of dB and dA too.
WIDE = (20, 40, (300, 270, 8), (4, 3, 2))
DTYPES = [
    (WHOLE, WHOLE),
    *(pytest.param(two, marks=pytest.mark.exhaustive) for two in ((HALF, HALF), (HALF, WHOLE))),
]


@pytest.mark.parametrize("shape", quick(SHAPES, SPLIT), ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_y_and_p_is_within_the_budget(shape, dtypes):
    M, K, columns, ranks = shape
    members = projections(K, columns, ranks, *dtypes)
    x = torch.randn(M, K).to(DEVICE, dtypes[0])
    with torch.no_grad():
        assert_right(x, members, group_fused.forward(bundle(x, members)))


def gradients(x, members, dys, dtype):
    """dx, then each dA and dB, in a dtype by separate operations."""
    x = x.detach().to(dtype).requires_grad_()
    wide = [
        Projection(*(None if t is None else t.detach().to(dtype) for t in one[:4]), *one[4:])
        for one in members
    ]
    factors = [f.requires_grad_() for one in wide if one.A is not None for f in (one.A, one.B)]
    ys = [unfused(x, one, dtype)[0] for one in wide]
    return torch.autograd.grad(ys, (x, *factors), [dy.to(dtype) for dy in dys])


def assert_gradients_right(x, members, dys):
    o = bundle(x, members)
    with torch.no_grad():
        dx, dAs, dBs = group_fused.backward(o, dys, group_fused.forward(o)[1])
    ours = [dx, *(one for pair in zip(dAs, dBs, strict=True) for one in pair if one is not None)]
    extra = torch.finfo(x.dtype).eps ** 2 * (members[0].A.dtype != x.dtype)
    torchs, truths = (gradients(x, members, dys, dtype) for dtype in (members[0].A.dtype, torch.float64))
    for place, (one, other, truth) in enumerate(zip(ours, torchs, truths, strict=True)):
        assert_within_budget(f"gradient {place}", one, other, truth, extra=extra)


@pytest.mark.parametrize("shape", quick([*SHAPES, WIDE], WIDE), ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_gradient_is_within_the_budget(shape, dtypes):
    M, K, columns, ranks = shape
    members = projections(K, columns, ranks, *dtypes)
    x = torch.randn(M, K).to(DEVICE, dtypes[0])
    assert_gradients_right(x, members, [torch.randn(M, N).to(DEVICE, dtypes[0]) for N in columns])


@pytest.mark.exhaustive
def test_operands_of_any_strides():
    members = projections(30, (24, 20), (3, 8), WHOLE, WHOLE)
    members[0] = members[0]._replace(W=members[0].W.t().contiguous().t(), A=members[0].A.t().contiguous().t())
    x = torch.randn(30, 21).to(DEVICE).t()
    with torch.no_grad():
        assert_right(x, members, group_fused.forward(bundle(x, members)))
    assert_gradients_right(x, members, [torch.randn(one.W.shape[0], 21).to(DEVICE).t() for one in members])


def test_tiles_are_split_where_there_are_few():
    M, K, columns, ranks = SPLIT
    members = projections(K, columns, ranks, WHOLE, WHOLE)
    plan = group_fused._plan("forward", bundle(torch.randn(M, K).to(DEVICE), members), aligned=False)
    assert isinstance(plan.single, Plan)
    assert min(plan.split_k.values()) > 1 or ON_GPU
    M, K, columns, ranks = WIDE
    o = bundle(torch.randn(M, K).to(DEVICE), projections(K, columns, ranks, WHOLE, WHOLE))
    assert group_fused._plan("backward", o, aligned=False).split_k["dx"] > 1 or ON_GPU


def step(members, x):
    x = x.clone().requires_grad_()
    factors = [f.requires_grad_() for one in members if one.A is not None for f in (one.A, one.B)]
    ys = grouped_lora_linear(x, members)
    return [*ys, *torch.autograd.grad(sum(y.square().sum() for y in ys), (x, *factors))]


def test_a_group_is_one_launch_each_way(monkeypatch):
    launches = []
    for way in ("forward", "backward"):
        once = getattr(group_fused, way)

        def counted(o, *rest, way=way, once=once):
            launches.append((way, len(o.members)))
            return once(o, *rest)

        monkeypatch.setattr(group_fused, way, counted)
    members = projections(72, (24, 12, 16), (3, 0, 5), WHOLE, WHOLE)
    x = torch.randn(20, 72).to(DEVICE)
    with set_backend("triton"):
        ours = step(members, x)
    assert launches == [("forward", 3), ("backward", 3)]
    with set_backend("torch"):
        torchs = step(members, x)
    wide = [
        one._replace(**{k: None if (t := getattr(one, k)) is None else t.detach().double() for k in "WbAB"})
        for one in members
    ]
    for one, other, truth in zip(ours, torchs, step(wide, x.double()), strict=True):
        assert_within_budget("step", one.detach(), other.detach(), truth.detach())


@pytest.mark.parametrize(
    ("change", "setting", "name", "why"),
    [
        (lambda members: members, "torch", "together", "torch's products"),
        (lambda members: members, "triton", "one launch", "x is read once"),
        (lambda members: [*members, members[0]], "triton", "in turn", "takes 3 members at most"),
        (lambda members: [one._replace(dropout=0.5) for one in members], "triton", "in turn", "drops other"),
    ],
)
def test_the_route_and_its_reason(change, setting, name, why):
    members = change(projections(72, (24, 12, 16), (3, 2, 5), WHOLE, WHOLE))
    route = group_routes.decided(with_seeds(bundle(torch.randn(20, 72).to(DEVICE), members)), setting)
    assert route.name == name
    assert why in route.why


def test_in_turn_each_member_takes_its_own_route(monkeypatch):
    hopper = pytest.importorskip("fastlora.routes.hopper")
    ran = []
    for name in ("forward", "backward"):
        plain_pass = getattr(cpu, name)

        def noted(*given, name=name, plain_pass=plain_pass):
            ran.append(name)
            return plain_pass(*given)

        monkeypatch.setattr(hopper, name, noted)
    members = projections(72, (24, 12), (3, 2), WHOLE, WHOLE)
    o = bundle(torch.randn(20, 72).to(DEVICE), members)
    persistent, torchs = (Decision(route, route) for route in (Route("persistent", ""), Route("torch", "")))
    route = group_routes.GroupRoute("in turn", "", (persistent, torchs))
    ys, ps = group_routes.forward(o, route)
    assert ran == ["forward"]
    needs = GroupNeeds(True, (True, True), (True, True))
    group_routes.backward(o, [torch.ones_like(y) for y in ys], ps, needs, route)
    assert ran == ["forward", "backward"]


def test_few_rows_with_wide_adapters_and_few_columns_go_in_turn():
    members = projections(72, (24, 12), (3, 2), WHOLE, HALF)
    for M, name in ((16, "in turn"), (17, "one launch")):
        x = torch.randn(M, 72).to(DEVICE)
        assert group_routes.decided(bundle(x, members), "triton").name == name
    narrow = projections(64, (24, 12), (3, 2), HALF, HALF)
    x = torch.randn(20, 64).to(DEVICE, HALF)
    assert group_routes.decided(bundle(x, narrow), "triton").name == "in turn"
