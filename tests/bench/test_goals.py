"""The table of what is to be shown: judged by what was measured, and silent about nothing."""

import pytest
import torch

from bench.cases import Case
from bench.goals import cpu_findings, findings
from bench.layer import UNPACKING
from tests.bench import rows

HEADLINE = Case(8192, 4096, 4096, 16, torch.bfloat16, torch.bfloat16)
WIDE = HEADLINE._replace(N=14336)
BOTH = "forward+backward"


def row(method, us, case=HEADLINE, phase=BOTH, mode="graph"):
    return rows.row([us, 2 * us, us], method=method, phase=phase, mode=mode, **case.labels())


def found(*given, **parts):
    lines = findings(rows.results(*given, **parts))
    return {(line.what, line.shapes.split(" of")[0]): line for line in lines}


def test_nothing_measured_is_said_in_every_line():
    lines = found()
    assert len(lines) == 15
    assert {(line.measured, line.verdict) for line in lines.values()} == {("-", "not measured")}


@pytest.mark.parametrize(("ours", "verdict"), [(10.4, "met"), (10.5, "NOT MET")])
def test_a_ratio_is_held_to_its_bound(ours, verdict):
    lines = found(row("frozen", 10.0, phase="forward"), row("fastlora", ours, phase="forward"))
    line = lines["fastlora over frozen, forward", "headline"]
    assert (line.measured, line.reach, line.verdict) == (f"{ours / 10:.3f}", "<= 1.04", verdict)


def test_eager_and_dry_times_count_for_nothing():
    for mode in ("eager", "dry-run"):
        lines = found(row("full", 20.0, mode=mode), row("fastlora", 10.0, mode=mode))
        assert {line.verdict for line in lines.values()} == {"not measured"}


def test_means_are_geometric_over_the_llama_shapes_with_many_rows():
    others = [HEADLINE._replace(**change) for change in ({"M": 64}, {"r": 8}, {"bias": True}, {"K": 5120})]
    given = [row("fastlora", 10.0, case) for case in (HEADLINE, WIDE, *others)]
    given += [row("full", 10.0, HEADLINE), row("full", 40.0, WIDE)]
    given += [row("full", 990.0, case) for case in others]
    line = found(*given)["full over fastlora, forward+backward", "mean"]
    assert (line.shapes, line.measured) == ("mean of 2", "2.000")


def test_wide_adapters_and_dropout_are_judged_in_their_own_cases():
    wide, dropped = HEADLINE._replace(adapter_dtype=torch.float32), HEADLINE._replace(dropout=0.1)
    given = [row("peft", 20.0, wide), row("fastlora", 10.0, wide)]
    lines = found(*given, row("fastlora", 10.2, dropped), row("fastlora-p0", 10.0, dropped))
    assert lines["peft over fastlora, fp32 adapters", "headline"].measured == "2.000"
    assert lines["peft over fastlora, bf16 adapters", "headline"].verdict == "not measured"
    assert lines["dropout 0.1 over none, fastlora", "headline"].measured == "1.020"


def test_the_closest_other_lora_is_named_wherever_it_is():
    given = [row("fastlora", 10.0), row("addmm", 15.0), row("fastlora", 10.0, WIDE), row("peft", 9.0, WIDE)]
    given += [row("frozen", 1.0), row("full", 1.0)]
    line = found(*given)["fastest other LoRA over fastlora, forward+backward", "least"]
    assert line.measured == "0.900 (peft, 8192x4096->14336 r16)"
    assert (line.shapes, line.verdict) == ("least of 2", "NOT MET in 1 of 2")


@pytest.mark.parametrize(
    ("kernels", "measured", "verdict"),
    [
        (["fill", "forward_kernel"], "1 and 1 fills", "met"),
        (["Memset (Device)", "forward_kernel"], "1 and 1 fills", "met"),
        (["forward_kernel", "cast"], "2 and 0 fills", "NOT MET"),
    ],
)
def test_launches_are_counted_without_the_fill_of_the_workspace(kernels, measured, verdict):
    profile = {"method": "fastlora", "phase": "forward", **HEADLINE.labels(), "kernels": kernels}
    line = found(profiles=[profile])["launches of fastlora, forward", "headline"]
    assert (line.measured, line.verdict) == (measured, verdict)


M2048 = {"M": 2048, "K": 1024, "N": 1024, "r": 16}
NET = {"level": "model", "model": "llama-60M", "phase": "step", "shape": {"batch": 1, "length": 256, "r": 16}}


def packed(us, **changes):
    return rows.row((us,) * 3, **{"dtype": "bfloat16", "base": "nf4", "shape": M2048} | changes)


def net(us, method):
    return rows.row((us,) * 3, method=method, **NET)


def verdicts(*given, nets=()):
    lines = cpu_findings(given, nets)
    return [(line.what.split(",")[0], line.measured, line.reach, line.verdict) for line in lines]


def test_nothing_measured_on_a_cpu_makes_no_table():
    assert verdicts() == verdicts(packed(1.0), nets=[net(1.0, "fastlora")]) == []


@pytest.mark.parametrize(("theirs", "verdict"), [(12.0, "met"), (11.8, "NOT MET")])
def test_peft_is_held_to_its_multiple_over_a_packed_weight(theirs, verdict):
    given = [packed(10.0, saved_bytes=100), packed(theirs, method="peft", saved_bytes=150)]
    assert verdicts(*given) == [
        ("peft over fastlora", f"{theirs / 10:.2f}", ">= 1.20", verdict),
        ("bytes saved for backward", "1.50", ">= 1.50", "met"),
    ]


def test_dtypes_are_judged_each_by_itself():
    given = [packed(10.0), packed(12.0, method="peft")]
    given += [packed(10.0, dtype="float32"), packed(11.0, method="peft", dtype="float32")]
    assert [cells[1] for cells in verdicts(*given)] == ["1.20", "1.10"]


@pytest.mark.parametrize(("ours", "verdict"), [(15.4, "met"), (16.0, "NOT MET")])
def test_the_packing_costs_what_unpacking_takes_alone(ours, verdict):
    given = [packed(ours), packed(5.0, method=UNPACKING), packed(10.0, base="")]
    found = verdicts(*given)
    assert found == [("fastlora over nf4", f"{ours / 15:.2f}", "<= 1.03", verdict)]


def test_groups_are_held_to_what_the_net_of_that_size_can_gain():
    nets = [net(10.0, "fastlora"), net(9.7, "grouped"), net(10.0, "peft"), net(12.2, "full")]
    assert verdicts(nets=nets) == [
        ("grouped over fastlora", "0.97", "<= 0.97", "met"),
        ("peft over grouped", "1.03", ">= 1.10", "NOT MET"),
        ("full over grouped", "1.26", ">= 1.25", "met"),
    ]
