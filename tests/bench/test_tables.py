"""What the tables say of rows, also of a run that lacks some."""

from bench.goals import findings
from bench.groups import comparable
from bench.tables import parts
from fastlora.tables import as_text
from tests.bench.rows import CEILINGS, results, row

MEASURED = CEILINGS._replace(matmul_flops=2e12, matmul_dtype="float32")._asdict()
NET = {"level": "model", "model": "llama-tiny", "phase": "step"}


def printed(*rows, **more):
    found = results(*rows, **more)
    return as_text(parts(found, findings(found)))


def line(text, start):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


def test_a_row_says_what_share_of_its_dtypes_ceilings_it_reached():
    work = {"flops": 10_000_000, "moved_bytes": 2_500_000, "floor_us": 4.0}
    text = printed(row((10.0,) * 3, **work), ceilings=MEASURED)
    assert line(text, "fastlora")[1] == "0.0100"  # milliseconds
    assert line(text, "fastlora")[-3:] == ["2.50", "50%", "25%"]
    other = row((10.0,) * 3, dtype="bfloat16", **work)
    assert "50%" not in printed(other, ceilings=MEASURED)
    slower = {**MEASURED, "matmul_dtype": "bfloat16", "matmul_flops": 1e12}
    assert "100%" in printed(other, ceilings=MEASURED, other_ceilings=[slower])


def test_the_rate_of_a_net_is_tokens_or_steps():
    text = printed(row((1000.0,) * 3, **NET, shape={"batch": 2, "length": 50, "r": 8}))
    assert ("tokens/s" in text, "100,000" in line(text, "fastlora")) == (True, True)
    text = printed(row((1000.0,) * 3, **NET, shape={"batch": 10, "r": 1}))
    assert ("steps/s" in text, "1,000" in line(text, "fastlora")) == (True, True)


def test_methods_of_one_kind_stand_in_one_table_with_their_ratio_to_ours_and_their_costs():
    costs = {"peak_bytes": 2_000_000, "launches": 3}
    rows = [row((1.0, 10.0, 100.0)), row((2.0, 30.0, 400.0), method="peft", **costs), row(mode="graph")]
    first, second = comparable(rows)
    assert list(first.rows) == ["fastlora", "peft"]
    assert first.over("peft") == (2.5, 3.0, 3.5)
    assert second.over("peft") is None
    text = printed(*rows, row(dtype="bfloat16", dropout=0.1, bias=True))
    assert "linear 128x1024->1024 r16, bf16, adapters fp32, dropout 0.1, bias, eager" in text
    assert "3.000" in line(text, "peft")
    assert line(text, "peft")[-2:] == ["2.00", "3"]
    assert line(text, "multiples")[-4:] == ["fastlora", "1.00,", "peft", "3.00"]


def test_what_was_to_be_shown_and_is_absent_or_left_out_is_listed_and_failures_stand_last():
    text = printed(
        absent={"peft": "no such module"},
        problems=["it broke"],
        left_out=[{"method": "addmm", "why": "no dropout"}] * 2,
        correctness={"racecheck": {"passed": None, "summary": "not run: no tool"}},
    )
    assert text.count("not measured") == len(list(findings(results())))
    assert text.splitlines()[-4:] == [
        "racecheck: not run: no tool",
        "left out: addmm of 2 cases: no dropout",
        "absent    peft: no such module",
        "FAILED    it broke",
    ]
