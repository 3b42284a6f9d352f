"""The fused kernels for rows that choose experts, on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch

from fastlora import set_backend
from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes import fused_runs
from fastlora.routes.runs_call import RunsCall
from fastlora.segments.decide import decide, decide_for
from fastlora.segments.function import linear_by_runs
from fastlora.segments.fused import _call
from fastlora.segments.plan import plan_of
from fastlora_kernels.tables import tile_of
from tests.cases import quick
from tests.segments import test_runs
from tests.segments.test_runs import by_formula, in_fp64, operands, results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.usefixtures("poisoned")

ROWS = 40
CHOICES = {
    # A border inside a block of rows, an expert without rows, one of a single row, places without an expert.
    "ragged": torch.tensor([0] * 33 + [1] + [3] * 4 + [5] * 2)[torch.randperm(ROWS)].view(20, 2),
    "one has all": torch.full((ROWS, 1), 2),
    "runs of one row": torch.arange(5).view(5, 1),
    "nobody chose any": torch.full((3, 2), 5),
}


@pytest.fixture(autouse=True)
def by_kernels():
    with set_backend("triton"):
        yield


def sized(K, N, r, monkeypatch):
    for name, size in (("K", K), ("N", N), ("R", r)):
        monkeypatch.setattr(test_runs, name, size)


def on_device(chosen, **options):
    return operands(chosen, device=DEVICE, **options)


def assert_matches_fp64(o, chosen):
    ours, torchs = results(linear_by_runs, o), results(by_formula(chosen), o)
    truth = results(by_formula(chosen), in_fp64(o))
    wide = torch.finfo(o.A.dtype).bits > torch.finfo(o.x.dtype).bits
    for name, found in ours.items():
        if truth[name] is not None:
            extra = torch.finfo(o.x.dtype).eps ** 2 * wide
            assert_within_budget(name, found, torchs[name], truth[name], extra=extra)


@pytest.mark.parametrize(
    "case",
    quick(
        [
            ("ragged", "float32", True, True, 50, 40),
            ("ragged", "float32", True, True, 70, 90),
            ("ragged", "float16", False, False, 70, 90),
            ("one has all", "float32", False, True, 70, 90),
            ("runs of one row", "float16", True, True, 72, 64),
            ("nobody chose any", "float32", True, True, 70, 90),
        ],
        ("ragged", "float32", True, True, 50, 40),
    ),
)
def test_experts_are_the_formula_and_its_gradients(case, monkeypatch):
    choice, dtype, weighted, bias, K, N = case
    sized(K, N, 5, monkeypatch)
    chosen = CHOICES[choice]
    o = on_device(chosen, weighted=weighted, bias=bias, dtype=getattr(torch, dtype))
    assert decide(o._replace(setting="triton")).is_fused
    assert_matches_fp64(o, chosen)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "adapter"), [("float16", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("r", [1, 40])
def test_any_layout_rank_and_dtype_of_adapters(dtype, adapter, transposed, r, monkeypatch):
    sized(64, 136, r, monkeypatch)
    chosen = CHOICES["ragged"]
    kinds = {"dtype": getattr(torch, dtype), "adapter": getattr(torch, adapter)}
    assert_matches_fp64(on_device(chosen, transposed=transposed, **kinds), chosen)


@pytest.mark.exhaustive
def test_dropout_is_one_mask_in_both_passes():
    """With W = 0, A = B = s = 1 and one column, y is the mask over 1 - rate, and dx is too for dy = 1."""
    chosen = torch.arange(2, device=DEVICE).repeat_interleave(100)[:, None]
    ones = {name: torch.ones(2, 1, 1, device=DEVICE) for name in "AB"}
    o = test_runs.RunOperands(
        x=torch.ones(200, 1, device=DEVICE),
        W=torch.zeros(2, 1, 1, device=DEVICE),
        b=None,
        s=1.0,
        plan=plan_of(chosen, 2),
        dropout=0.5,
        seed=torch.tensor([3], device=DEVICE),
        **ones,
    )
    o.x.requires_grad_()
    y = linear_by_runs(o)
    (dx,) = torch.autograd.grad(y.sum(), o.x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y, dx)
    assert abs(y.mean() - 1) < 5 / 200**0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("split", [(3, 1), (1, 3), (2, 3)])
def test_tiles_that_programs_share_give_the_same(split, monkeypatch):
    sized(200, 300, 5, monkeypatch)
    chosen = CHOICES["ragged"]
    o = on_device(chosen, weighted=False, dtype=torch.float32)
    of = fused_runs.launch_of
    monkeypatch.setattr(fused_runs, "launch_of", lambda *args, **more: of(*args, split_k=split, **more))
    assert_matches_fp64(o, chosen)


@pytest.mark.exhaustive
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked_for_is_computed_and_it_is_the_same(needs, monkeypatch):
    sized(40, 72, 5, monkeypatch)
    o = on_device(CHOICES["ragged"], weighted=False, dtype=torch.float32)
    call, dy = _call(o), torch.randn(ROWS, 72, device=DEVICE)
    _, p = fused_runs.forward(call)
    whole, part = (
        fused_runs.backward(call, dy, p, EVERYTHING),
        fused_runs.backward(call, dy, p, Needs(*needs)),
    )
    for one, other, needed in zip(whole, part, needs, strict=True):
        assert torch.equal(one, other) if needed else other is None


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinities_of_one_expert_stay_with_it(monkeypatch):
    sized(40, 64, 5, monkeypatch)
    chosen = torch.tensor([0] * 20 + [1] * 20)[:, None]
    o = on_device(chosen, weighted=False, dtype=torch.float16)
    with torch.no_grad():
        o.x[30] = float("inf")
    found = results(linear_by_runs, o)
    assert torch.isfinite(found["y"][:20]).all()
    assert torch.isfinite(found["dA"][0]).all()


def test_the_table_of_tiles_cuts_each_run_and_leaves_the_rest_empty():
    """Three rows, none, 33 and 1 in blocks of 32; two rows behind them chose none."""
    offsets = torch.tensor([0, 3, 3, 36, 37])
    x, W = torch.zeros(39, 8, device=DEVICE), torch.zeros(4, 8, 8, device=DEVICE)
    o = RunsCall(x, W, None, W[:, :1], W[..., :1], 1, 1.0, offsets.to(DEVICE))
    found = fused_runs.launch_of("forward", o, tile=tile_of("forward", 32, 64, 64, 2, 4, 1)).tables
    rows = [[0, 0, 3], [2, 3, 35], [2, 35, 36], [3, 36, 37], [4, 37, 39], [4, 0, 0]]
    assert found.tiles[:, :3].tolist() == rows
    assert (found.num_tiles, found.num_segments, found.num_operands) == (6, 6, 4)


@pytest.mark.exhaustive
def test_a_backward_pass_takes_the_code_of_its_forward_pass(monkeypatch):
    sized(40, 64, 5, monkeypatch)
    o = on_device(CHOICES["ragged"], dtype=torch.float32)._replace(
        dropout=0.4, seed=torch.tensor([5], device=DEVICE)
    )
    dy = torch.randn(20, 64, device=DEVICE)

    def gradient(setting):
        y = linear_by_runs(o)
        with set_backend(setting):
            return torch.autograd.grad(y, o.x, dy)[0]

    assert torch.equal(gradient("torch"), gradient("triton"))


@pytest.mark.parametrize(
    ("changed", "name", "why"),
    [
        ({}, "triton", "as on an H100"),
        ({"dtype": torch.float64}, "runs", "run by run: the kernels take fp16, bf16 and fp32"),
        ({"r": 0}, "grouped", "torch's grouped products: no update applies"),
        ({"r": 0, "K": 60}, "runs", "torch's products, run by run: no update applies"),
        ({"M": 0}, "grouped", "an operand is empty"),
    ],
    ids=str,
)
def test_the_decision_on_a_gpu_has_its_reason(changed, name, why):
    problem = Problem(64, 128, 256, 16, torch.bfloat16, torch.bfloat16)._replace(**changed)
    route = decide_for(problem, torch.device("cpu"), "auto", gpu="H100")
    assert route.name == name
    assert why in route.why


def test_without_an_update_torch_computes():
    o = on_device(CHOICES["ragged"], update=False, dtype=torch.float32)
    assert decide(o._replace(setting="triton")).name == "runs"
