"""Tiles that are cut into parts give what whole ones give, and every tile of the tables can be cut."""

import pytest
import torch

from fastlora.formula.operands import EVERYTHING
from fastlora.routes import fused
from fastlora.routes.decide import problem_of
from fastlora.routes.plan import Plan, architecture_of, plan_for
from fastlora_kernels.tables import ARCHITECTURES, Tile, load_table
from tests.cases import quick
from tests.testing import Operands, assert_within_budget, gradients, operands, oracle, split_eps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.usefixtures("poisoned")


def plans(ops: Operands, tile: Tile | None = None) -> tuple[Plan, Plan]:
    where = (architecture_of(DEVICE), problem_of(ops.call()), EVERYTHING, tile)
    return plan_for("forward", *where), plan_for("backward", *where)


def with_parts(plan: Plan, **parts: int) -> Plan:
    tiles = {name: count // plan.parts[name] for name, count in plan.tasks.items()}
    parts = dict.fromkeys(tiles, 1) | parts
    return plan._replace(parts=parts, tasks={name: count * parts[name] for name, count in tiles.items()})


def run(ops: Operands, forward: Plan, backward: Plan) -> dict[str, torch.Tensor]:
    y, p = fused.forward(ops.call(), forward)
    dx, dA, dB = fused.backward(ops.call(), ops.dy, p, EVERYTHING, backward)
    return {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}


def assert_matches_fp64(ops: Operands, forward: Plan, backward: Plan) -> None:
    ours, torchs, truth = run(ops, forward, backward), gradients(ops), oracle(ops)
    for name, result in ours.items():
        assert_within_budget(name, result, torchs[name], truth[name], extra=split_eps(ops))


# (M, K, N): long where the tiles of that kind sum.
CUT = {
    "p": (20, 150, 24),
    "y": (20, 150, 24),
    "q": (20, 24, 154),
    "dx": (20, 24, 154),
    "gradients": (150, 20, 24),
}


@pytest.mark.parametrize("count", quick([2, 3, 7], 7))
@pytest.mark.parametrize("shape", quick([None, (150, 150, 154)], None), ids=str)
@pytest.mark.parametrize("name", CUT)
def test_each_kind_of_tile_may_be_cut(name, shape, count):
    # 7 parts of 5 steps leave some of them empty.
    ops = operands(*(shape or CUT[name]), 40, device=DEVICE)
    forward, backward = plans(ops)
    cut = {"dA": count, "dB": count} if name == "gradients" else {name: count}
    if name in ("p", "y"):
        assert_matches_fp64(ops, with_parts(forward, **cut), with_parts(backward))
    else:
        assert_matches_fp64(ops, with_parts(forward), with_parts(backward, **cut))


def test_few_rows_of_a_long_contraction_are_cut_by_themselves():
    ops = operands(5, 520, 264, 8, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops)
    assert forward.parts["p"] > 1
    assert forward.parts["y"] > 1
    assert_matches_fp64(ops, forward, backward)


def test_parts_are_added_in_the_same_order_every_time():
    ops = operands(40, 140, 136, 20, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops)
    cut = (
        with_parts(forward, p=3, y=4),
        with_parts(backward, q=3, dx=4, dA=2, dB=2),
    )
    first, second = run(ops, *cut), run(ops, *cut)
    assert all(torch.equal(first[name], second[name]) for name in first)


def tiles_of_the_tables() -> list[Tile]:
    entries = [
        entry
        for architecture in ARCHITECTURES
        for classes in load_table(architecture).entries.values()
        for entry in classes.values()
    ]
    # Warps and stages mean nothing to the interpreter; on a GPU the table's own are compiled.
    shapes = {
        tile._replace(num_warps=8, num_stages=2)
        for entry in entries
        for tile in (entry.forward, entry.backward)
    }
    return sorted(shapes)


@pytest.mark.parametrize(
    "tile",
    quick(tiles_of_the_tables(), tiles_of_the_tables()[0]),
    ids=lambda tile: f"{tile.rows}x{tile.out}x{tile.inner}",
)
def test_every_tile_of_the_tables_is_right_whole_and_cut(tile):
    ops = operands(tile.rows + 5, 2 * tile.inner + 8, tile.out + 16, 24, dtype=torch.float16, device=DEVICE)
    forward, backward = plans(ops, tile)
    assert_matches_fp64(ops, with_parts(forward), with_parts(backward))
    assert_matches_fp64(ops, with_parts(forward, p=2, y=2), with_parts(backward, q=2, dx=2, dA=2, dB=2))
