"""What the tables say of a row."""

import io

import pytest
from rich.console import Console

from bench.groups import comparable
from bench.table import print_tables, scale
from tests.bench.rows import results, row

CEILINGS = {
    "matmul_flops": 2e12,
    "matmul_dtype": "float32",
    "matmul_size": 8,
    "copy_bytes_per_s": 1e12,
    "copy_bytes": 64,
}
NET = {"level": "model", "model": "llama-tiny", "phase": "step", "shape": {"batch": 2, "length": 50, "r": 8}}


def printed(*rows, **changes):
    out = io.StringIO()
    print_tables(results(*rows, **changes), Console(file=out, width=200))
    return out.getvalue()


def line(text, method):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(method))


def test_a_row_says_what_share_of_the_ceilings_it_reached():
    text = printed(row((10.0,) * 3, flops=10_000_000, moved_bytes=2_500_000, floor_us=4.0), ceilings=CEILINGS)
    assert line(text, "fastlora")[-3:] == ["2.50", "50%", "25%"]


def test_a_row_of_another_dtype_is_held_to_that_dtypes_ceilings():
    other = row((10.0,) * 3, dtype="bfloat16", flops=10_000_000, moved_bytes=2_500_000)
    assert "50%" not in printed(other, ceilings=CEILINGS)
    slower = {**CEILINGS, "matmul_dtype": "bfloat16", "matmul_flops": 1e12}
    assert "100%" in printed(other, ceilings=CEILINGS, other_ceilings=[slower])


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
    assert line(printed(*rows), "peft")[-3:] == ["2.50", "..", "3.50"] or "3.000" in printed(*rows)


def test_absent_methods_are_listed_and_failures_stand_last():
    text = printed(row(), absent={"loralib": "not installed"}, problems=["it broke"])
    assert text.splitlines()[-2:] == ["absent    loralib: not installed", "FAILED    it broke"]


@pytest.mark.parametrize(("us", "unit"), [(3e6, "s"), (1.9e6, "ms"), (2e3, "ms"), (1.9e3, "us")])
def test_times_are_shown_in_the_unit_that_suits_them(us, unit):
    (group,) = comparable([row((us,))])
    assert scale(group)[1] == unit
