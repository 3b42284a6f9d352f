"""What the tables and pictures say of rows, also of a run that lacks some."""

import io

import pytest
import torch
from rich.console import Console

from bench.cases import Case
from bench.groups import comparable, in_unit
from bench.pictures import draw_groups
from bench.tables import print_summary, print_tables
from tests.bench.rows import CEILINGS, results, row

MEASURED = CEILINGS._replace(matmul_flops=2e12, matmul_dtype="float32")._asdict()
NET = {"level": "model", "model": "llama-tiny", "phase": "step", "shape": {"batch": 2, "length": 50, "r": 8}}
CASES = [
    Case(8, 16, 32, r, torch.bfloat16, dtype) for r in (4, 8) for dtype in (torch.bfloat16, torch.float32)
]
SAMPLES = {"frozen": (10.0, 20.0, 10.0), "full": (30.0, 60.0, 30.0), "fastlora": (12.0, 24.0, 12.0)}


def printed(*rows, how=print_tables, **changes):
    out = io.StringIO()
    how(results(*rows, **changes), Console(file=out, width=200))
    return out.getvalue()


def line(text, start):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


def test_a_row_says_what_share_of_its_dtypes_ceilings_it_reached():
    work = {"flops": 10_000_000, "moved_bytes": 2_500_000, "floor_us": 4.0}
    text = printed(row((10.0,) * 3, **work), ceilings=MEASURED)
    assert line(text, "fastlora")[-3:] == ["2.50", "50%", "25%"]
    other = row((10.0,) * 3, dtype="bfloat16", **work)
    assert "50%" not in printed(other, ceilings=MEASURED)
    slower = {**MEASURED, "matmul_dtype": "bfloat16", "matmul_flops": 1e12}
    assert "100%" in printed(other, ceilings=MEASURED, other_ceilings=[slower])


def test_the_rate_of_a_net_is_tokens_or_steps():
    text = printed(row((1000.0,) * 3, **NET))
    assert "tokens/s" in text
    assert "100,000" in line(text, "fastlora")
    text = printed(row((1000.0,) * 3, **{**NET, "shape": {"batch": 10, "r": 1}}))
    assert "steps/s" in text
    assert "1,000" in line(text, "fastlora")


def test_methods_of_one_kind_stand_in_one_table_with_their_ratio_to_ours():
    rows = [row((1.0, 10.0, 100.0)), row((2.0, 30.0, 400.0), method="peft"), row(mode="graph")]
    first, second = comparable(rows)
    assert list(first.rows) == ["fastlora", "peft"]
    assert first.over("peft") == (2.5, 3.0, 3.5)
    assert second.over("peft") is None
    assert "3.000" in line(printed(*rows), "peft")


@pytest.mark.parametrize(("us", "unit"), [(3e6, "s"), (1.9e6, "ms"), (2e3, "ms"), (1.9e3, "us")])
def test_times_are_shown_in_the_unit_that_suits_them(us, unit):
    (group,) = comparable([row((us,))])
    assert in_unit(group)[1] == unit


def run_row(case, method, phase="forward"):
    costs = {"peak_bytes": 2_000_000, "launches": 2, "floor_us": 8.0}
    return row(SAMPLES[method], method=method, phase=phase, mode="graph", **costs, **case.labels())


ALL = [run_row(case, method, phase) for phase in ("forward", "x") for case in CASES for method in SAMPLES]


def test_a_line_of_a_summary_gives_medians_ratios_and_the_distance_to_the_floor():
    text = printed(*ALL, how=print_summary)
    assert line(text, "8x16->32 r4, bf16 ")[3:] == [
        "10.0", "1.000", "30.0", "3.000", "12.0", "1.200", "2.500", "1.500"
    ]  # fmt: skip
    lacking = [run_row(CASES[0], "frozen"), run_row(CASES[0], "fastlora"), run_row(CASES[1], "frozen")]
    assert line(printed(*lacking, how=print_summary), "8x16->32 r4, bf16, adapters fp32")[-6:] == [
        "10.0", "1.000", "-", "-", "-", "-"
    ]  # fmt: skip


def test_a_summary_gives_means_for_each_pair_of_dtypes_and_the_costs_of_the_first_case():
    text = printed(*ALL, how=print_summary)
    means = [line for line in text.splitlines() if line.startswith("mean")]
    assert means[:2] == [
        "mean of 2, bf16: fastlora/frozen 1.200, full/fastlora 2.500",
        "mean of 2, bf16, adapters fp32: fastlora/frozen 1.200, full/fastlora 2.500",
    ]
    costs = text[text.index("x, 8x16->32 r4, bf16: one call takes") :]
    assert line(costs, "frozen") == ["frozen", "2", "2.00"]


def test_a_case_is_named_by_all_that_tells_it_apart():
    case = CASES[1]._replace(dropout=0.1, bias=True)
    text = printed(run_row(case, "frozen"), how=print_summary)
    assert "8x16->32 r4, bf16, adapters fp32, dropout 0.1, bias " in text


def test_what_is_absent_or_left_out_is_listed_and_failures_stand_last():
    found = {"absent": {"peft": "no such module"}, "problems": ["it broke"]}
    found["left_out"] = [{"method": "addmm", "why": "no dropout"}] * 2
    found["correctness"] = {"racecheck": {"passed": None, "summary": "not run: no tool"}}
    assert printed(how=print_summary, **found).splitlines()[-4:] == [
        "racecheck: not run: no tool",
        "left out: addmm of 2 cases: no dropout",
        "absent    peft: no such module",
        "FAILED    it broke",
    ]
    assert printed(row(), **found).splitlines()[-1] == "FAILED    it broke"


@pytest.mark.parametrize("count", [1, 5, None], ids=["one row", "some rows", "all rows"])
def test_a_picture_can_be_drawn_of_whatever_was_measured(count, tmp_path):
    draw_groups(results(*ALL[:count]), tmp_path / "linear.png")
    assert (tmp_path / "linear.png").read_bytes().startswith(b"\x89PNG")
