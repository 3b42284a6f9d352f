"""Tiles that several programs share give what others give, and every tile of the tables can be shared."""

import pytest
import torch

from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.errors import assert_within_budget, gradients, oracle, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import fused
from fastlora.routes.architecture import architecture_of
from fastlora.routes.decide import problem_of
from fastlora.routes.group_plan import group_plan
from fastlora.routes.plan import Plan, forget_plans, p_alone_plan, plan_for
from fastlora_kernels.tables import ARCHITECTURES, load_table, tile_of
from tests.cases import quick

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.usefixtures("poisoned")


def plans(ops: Inputs, shape: tuple[int, int, int] | None = None) -> tuple[Plan, Plan]:
    """How the passes are launched, with tiles of (rows, columns, step) where `shape` is given."""
    where = (architecture_of(DEVICE), problem_of(ops.call()))
    return tuple(
        plan_for(direction, *where, tile=None if shape is None else tile_of(direction, *shape, 2, 8, 2))
        for direction in ("forward", "backward")
    )


def with_split_k(plan: Plan, **counts: int) -> Plan:
    """The same tiles, each shared by so many programs; not shared where nothing is said."""
    tiles = {name: count // plan.split_k[name] for name, count in plan.tasks.items()}
    split_k = dict.fromkeys(tiles, 1) | counts
    tasks = {name: count * split_k[name] for name, count in tiles.items()}
    return plan._replace(split_k=split_k, tasks=tasks, num_tasks=sum(tasks.values()))


def run(ops: Inputs, forward: Plan, backward: Plan) -> dict[str, torch.Tensor]:
    y, p = fused.forward(ops.call(), forward)
    dx, dA, dB = fused.backward(ops.call(), ops.dy, p, EVERYTHING, backward)
    return {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}


def assert_matches_fp64(ops: Inputs, forward: Plan, backward: Plan) -> None:
    ours, torchs, truth = run(ops, forward, backward), gradients(ops), oracle(ops)
    for name, result in ours.items():
        assert_within_budget(name, result, torchs[name], truth[name], extra=split_eps(ops))


# (M, K, N): long where the tiles of that kind sum.
LONG = {
    "p": (20, 150, 24),
    "y": (20, 150, 24),
    "q": (20, 24, 154),
    "dx": (20, 24, 154),
    "gradients": (150, 20, 24),
}


@pytest.mark.parametrize("count", quick([2, 3, 7], 7))
@pytest.mark.parametrize("shape", quick([None, (150, 150, 154)], None), ids=str)
@pytest.mark.parametrize("name", LONG)
def test_each_kind_of_tile_may_be_shared_by_several_programs(name, shape, count):
    # 7 splits of 5 steps leave some of them empty.
    ops = random_inputs(*(shape or LONG[name]), 40, device=DEVICE)
    forward, backward = plans(ops)
    counts = {"dA": count, "dB": count} if name == "gradients" else {name: count}
    if name in ("p", "y"):
        assert_matches_fp64(ops, with_split_k(forward, **counts), with_split_k(backward))
    else:
        assert_matches_fp64(ops, with_split_k(forward), with_split_k(backward, **counts))


def test_few_rows_of_a_long_contraction_are_split_by_themselves():
    ops = random_inputs(5, 520, 264, 8, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops)
    assert forward.split_k["p"] > 1
    assert forward.split_k["y"] > 1
    assert_matches_fp64(ops, forward, backward)


@pytest.mark.exhaustive
def test_splits_are_added_in_the_same_order_every_time():
    ops = random_inputs(40, 140, 136, 20, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops)
    plans_ = (
        with_split_k(forward, p=3, y=4),
        with_split_k(backward, q=3, dx=4, dA=2, dB=2),
    )
    first, second = run(ops, *plans_), run(ops, *plans_)
    assert all(torch.equal(first[name], second[name]) for name in first)


def tiles_of_the_tables() -> list[tuple[int, int, int]]:
    """(rows, columns, step) of every tile."""
    entries = [
        entry
        for architecture in ARCHITECTURES
        for classes in load_table(architecture).entries.values()
        for entry in classes.values()
    ]
    # Warps and stages mean nothing to the interpreter; on a GPU the table's own are compiled.
    shapes = {
        (tile.block_m, tile.columns(direction), tile.step(direction))
        for entry in entries
        for direction, tile in (("forward", entry.forward), ("backward", entry.backward))
    }
    return sorted(shapes)


@pytest.mark.parametrize("shape", quick(tiles_of_the_tables(), tiles_of_the_tables()[0]), ids=str)
def test_every_tile_of_the_tables_is_right_split_and_not(shape):
    rows, columns, step = shape
    ops = random_inputs(rows + 5, 2 * step + 8, columns + 16, 24, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops, shape)
    assert_matches_fp64(ops, with_split_k(forward), with_split_k(backward))
    assert_matches_fp64(ops, with_split_k(forward, p=2, y=2), with_split_k(backward, q=2, dx=2, dA=2, dB=2))


def test_p_alone_is_made_by_all_that_have_work():
    problem = Problem(256, 4096, 4096, 16, torch.bfloat16, torch.bfloat16)
    beside, alone = (
        plan_for("forward", "sm_90", problem, measured=False),
        p_alone_plan("sm_90", problem, dropout=0.0, aligned=True),
    )
    assert (beside.split_k["p"], alone.split_k["p"]) == (2, 16)
    assert (beside.tasks["p"], alone.tasks["p"]) == (4, 32)


def test_splits_are_for_the_multiprocessors_that_a_gpu_has():
    problem = Problem(64, 4096, 1024, 16, torch.bfloat16, torch.bfloat16)
    usual, slice_of_it = (
        plan_for("forward", "sm_90", problem, measured=False, multiprocessors=count) for count in (None, 16)
    )
    assert usual == plan_for("forward", "sm_90", problem, measured=False, multiprocessors=132)
    assert usual.tasks["y"] > slice_of_it.tasks["y"] == 16
    assert group_plan("forward", "sm_90", problem, (512, 512), True, multiprocessors=16).split_k["y"] == 1
    alone = p_alone_plan("sm_90", problem, dropout=0.0, aligned=True, multiprocessors=2)
    assert alone.tasks["p"] == 2


def test_a_launch_asks_its_device(monkeypatch):
    o = random_inputs(16, 1024, 32, 4, dtype=torch.float16, device=DEVICE).call()
    of_usual = fused._plan("forward", o, EVERYTHING, True).split_k["y"]
    monkeypatch.setattr(fused, "multiprocessors", lambda device: 1)
    assert fused._plan("forward", o, EVERYTHING, True).split_k["y"] == 1 < of_usual


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_shape_has_one_plan_whose_scratch_holds_every_split(direction):
    problem = Problem(256, 4096, 4096, 16, torch.bfloat16, torch.bfloat16)
    plan = plan_for(direction, "sm_90", problem, measured=False)
    forget_plans()
    assert plan_for(direction, "sm_90", problem, measured=False) == plan
    small = "p" if direction == "forward" else "q"
    assert plan.tasks[small] == 2 * plan.split_k[small] == 4
    assert plan.scratch_size(small) == 4 * plan.tile.block_m * plan.block_r
    assert plan.num_tasks == sum(plan.tasks.values())
