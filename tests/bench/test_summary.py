"""Tables and picture of a run, also of one that lacks some of it."""

import pytest
import torch

from bench.cases import Case
from bench.environment import environment
from bench.picture import draw_picture
from bench.results import Results, Row
from bench.summary import summary

CASES = [
    Case(8, 16, 32, r, torch.bfloat16, dtype) for r in (4, 8) for dtype in (torch.bfloat16, torch.float32)
]
SAMPLES = {"frozen": [10.0, 20.0, 10.0], "full": [30.0, 60.0, 30.0], "fastlora": [12.0, 24.0, 12.0]}


def row(case, method, phase="forward", mode="graph"):
    samples = SAMPLES[method]
    return Row(
        level="linear",
        method=method,
        phase=phase,
        **case.labels(),
        mode=mode,
        median_us=samples[0],
        q25_us=samples[0],
        q75_us=samples[1],
        peak_bytes=2_000_000,
        launches=2,
        floor_us=8.0,
        samples_us=samples,
    )


def results(rows, **changes):
    return Results(environment=environment(torch.device("cpu")), command="", started="", rows=rows, **changes)


@pytest.fixture
def full():
    return results(
        [row(case, method, phase) for case in CASES for phase in ("forward", "x") for method in SAMPLES]
    )


def test_a_line_gives_medians_ratios_and_the_distance_to_the_floor(full):
    line = next(line for line in summary(full) if line.startswith("8x16->32 r4"))
    assert line.split()[2:] == [
        "bf16", "10.0", "1.000", "30.0", "3.000", "12.0", "1.200", "2.500", "1.500"
    ]  # fmt: skip


def test_means_are_given_for_each_pair_of_dtypes(full):
    lines = [line for line in summary(full) if line.startswith("mean")]
    assert lines[:2] == [
        "mean of 2, bf16: fastlora/frozen 1.200, full/fastlora 2.500",
        "mean of 2, bf16+fp32: fastlora/frozen 1.200, full/fastlora 2.500",
    ]


def test_launches_and_memory_of_the_first_case_are_listed(full):
    lines = list(summary(full))
    start = lines.index("x, 8x16->32 r4, bf16: one call takes")
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["launches", "peak", "MB"],
        ["frozen", "2", "2.0"],
    ]


def test_a_method_that_a_case_lacks_is_a_dash():
    lacking = results([row(CASES[0], "frozen"), row(CASES[0], "fastlora"), row(CASES[1], "frozen")])
    line = next(line for line in summary(lacking) if line.startswith("8x16->32 r4") and "+fp32 " in line)
    assert line.split()[2:] == ["bf16+fp32", "10.0", "1.000", "-", "-", "-", "-"]


def test_a_case_is_named_by_all_that_tells_it_apart():
    case = CASES[1]._replace(dropout=0.1, bias=True)
    assert any(
        line.startswith("8x16->32 r4 p0.1 bias  bf16+fp32")
        for line in summary(results([row(case, "frozen")]))
    )


def test_what_is_absent_or_left_out_is_listed_and_failures_stand_last():
    left_out = [{"method": "addmm", "why": "no dropout"}] * 2
    correctness = {"racecheck": {"passed": None, "summary": "not run: no tool"}}
    found = results(
        [],
        correctness=correctness,
        absent={"peft": "no such module"},
        left_out=left_out,
        problems=["it broke"],
    )
    assert list(summary(found))[-4:] == [
        "racecheck: not run: no tool",
        "absent: peft: no such module",
        "left out: addmm of 2 cases: no dropout",
        "FAILED: it broke",
    ]


@pytest.mark.parametrize("count", [1, 5, None], ids=["one row", "some rows", "all rows"])
def test_a_picture_can_be_drawn_of_whatever_was_measured(count, full, tmp_path):
    full.rows = full.rows[:count]
    draw_picture(full, tmp_path / "linear.png")
    assert (tmp_path / "linear.png").read_bytes().startswith(b"\x89PNG")
