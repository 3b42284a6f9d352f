"""The README's table of what runs on a CPU are to show, judged by what was measured."""

from pathlib import Path

import pytest
import torch

from bench.cases import Case
from bench.cpu_goals import lines
from bench.layer import PHASES, UNPACKING, unpacking_works
from bench.measure import measure_case
from bench.methods import FASTLORA, FROZEN
from bench.report import File, compared, newest, with_figures
from bench.schedule import packed_measurements
from bench.settings import effort_on
from tests.bench.rows import CEILINGS, results, row

CPU = torch.device("cpu")
M2048 = {"M": 2048, "K": 1024, "N": 1024, "r": 16}
NET = {"level": "model", "model": "llama-60M", "phase": "step", "shape": {"batch": 1, "length": 256, "r": 16}}


def packed(us, **changes):
    return row((us,) * 3, **{"dtype": "bfloat16", "base": "nf4", "shape": M2048} | changes)


def net(us, method):
    return row((us,) * 3, method=method, **NET)


def verdicts(*given, nets=()):
    cells = [line.split(" | ") for line in lines(given, nets)][2:]
    return [(head.removeprefix("| ").split(",")[0], *rest) for head, *rest in cells]


def test_nothing_measured_makes_no_table():
    assert list(lines([], [])) == []
    assert list(lines([packed(1.0)], [net(1.0, "fastlora")])) == []


@pytest.mark.parametrize(("theirs", "verdict"), [(12.0, "met |"), (11.8, "NOT MET |")])
def test_peft_is_held_to_its_multiple_over_a_packed_weight(theirs, verdict):
    given = [packed(10.0, saved_bytes=100), packed(theirs, method="peft", saved_bytes=150)]
    assert verdicts(*given) == [
        ("peft over fastlora", f"{theirs / 10:.2f}", ">= 1.20", verdict),
        ("bytes saved for backward", "1.50", ">= 1.50", "met |"),
    ]


def test_dtypes_are_judged_each_by_itself():
    given = [packed(10.0), packed(12.0, method="peft")]
    given += [packed(10.0, dtype="float32"), packed(11.0, method="peft", dtype="float32")]
    assert [cells[1] for cells in verdicts(*given)] == ["1.20", "1.10"]


def test_few_rows_are_not_judged():
    few = {"shape": {**M2048, "M": 128}}
    assert verdicts(packed(10.0, **few), packed(9.0, method="peft", **few)) == []


@pytest.mark.parametrize(("ours", "verdict"), [(15.4, "met |"), (16.0, "NOT MET |")])
def test_the_packing_costs_what_unpacking_takes_alone(ours, verdict):
    given = [packed(ours), packed(5.0, method=UNPACKING), packed(10.0, base="")]
    found = verdicts(*given)
    assert found == [("fastlora over nf4", f"{ours / 15:.2f}", "<= 1.03", verdict)]


def test_groups_are_held_to_what_the_net_of_that_size_can_gain():
    nets = [net(10.0, "fastlora"), net(9.7, "grouped"), net(10.0, "peft"), net(12.2, "full")]
    assert verdicts(nets=nets) == [
        ("grouped over fastlora", "0.97", "<= 0.97", "met |"),
        ("peft over grouped", "1.03", ">= 1.10", "NOT MET |"),
        ("full over grouped", "1.26", ">= 1.25", "met |"),
    ]


def test_a_run_over_packed_weights_takes_no_other_runs_place():
    plain = File(Path("a.json"), results(row((1.0,) * 3), row((2.0,) * 3, method="peft")))
    later = results(
        packed(10.0), packed(15.0, method="peft"), packed(7.0, base=""), started="2027-01-01T00:00:00+00:00"
    )
    runs = [plain, File(Path("b.json"), later)]
    heads = [column.head for column in compared(newest(runs, "cpu"))]
    assert [("base nf4" in head) for head in heads] == [False, True]
    text = "".join(f"<!-- figures: {kind} -->\n<!-- end of figures: {kind} -->\n" for kind in ("cpu", "cuda"))
    told = with_figures(text, runs, Path("bench/results"))
    assert "| 1.50 | >= 1.20 | met |" in told
    assert "a.json" in told
    assert "b.json" in told


def test_unpacking_is_timed_beside_the_methods():
    pytest.importorskip("bitsandbytes")
    case = Case(8, 64, 32, 4, torch.float32, torch.float32, base="nf4")
    found = results()
    how = effort_on(CPU, 2)._replace(warm_up_rounds=1)
    one = packed_measurements("nf4", CPU)[0]._replace(case=case, seconds=0.01)
    measure_case(found, one, how, [FROZEN, FASTLORA], CEILINGS, 0)
    assert found.problems == []
    assert {(each.method, each.phase) for each in found.rows} == {
        (name, phase) for name in ("frozen", "fastlora", UNPACKING) for phase in PHASES
    }


def test_unpacking_has_a_pass_of_its_own_for_each_pass(monkeypatch):
    pytest.importorskip("bitsandbytes")
    case = Case(8, 64, 32, 4, torch.float32, torch.float32, base="nf4")
    seen = []
    monkeypatch.setattr("bench.layer.unpacked", lambda layer, dtype: seen.append(dtype))
    for work in unpacking_works(case, [case.inputs(CPU)]).values():
        (call,) = work.parts.values()
        call()
    assert seen == 4 * [torch.float32]
