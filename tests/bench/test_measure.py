"""What is measured: right methods alone, in every phase, with floor, launches, bytes; failures on record."""

import itertools
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench.cases import Case, Measurement
from bench.ceilings import Use, floors, net_uses
from bench.compiling import variants_of
from bench.counts import device_events, profile_case
from bench.layer import PHASES, UNPACKING, unpacking_works
from bench.level import Level
from bench.measure import count_step, measure_case, measure_task, twin
from bench.methods import ADDMM, FASTLORA, FROZEN, FULL, METHODS, UNFUSED, present
from bench.mnist import digits_task
from bench.schedule import LLAMA_8B, LLAMA_70B, gpu_measurements, packed_measurements
from bench.settings import DRY, effort_on
from bench.step import ADAMS, PARTS, Trainer
from fastlora.measuring.timing import Work
from tests.bench.rows import CEILINGS, CPU, ROWS, SIZES, build, results, small_task
from tests.bench.test_check import CASES, wrong_scale

LAYERS = list(pairwise(SIZES))
FEW = ("frozen", "unfused")
MEASUREMENTS = gpu_measurements()


def unfinished(model, names, update):
    raise RuntimeError("out of resources\nand a long explanation")


def measured(*methods, case=DRY.cases[0], modes=("dry-run",)):
    found, measurement = results(), Measurement(case, tuple(method.name for method in methods), modes)
    measure_case(found, measurement, DRY.how, methods, CEILINGS, 0)
    return found


def test_another_librarys_failure_leaves_it_out_and_is_no_problem():
    broken = replace(UNFUSED, tune=unfinished, external=True)
    wrong = replace(UNFUSED, name="wrong", tune=wrong_scale, external=True)
    found = measured(broken, wrong, FROZEN)
    assert {row.method for row in found.rows} == {"frozen"}
    assert [entry["why"].split(":")[0] for entry in found.left_out] == ["checking unfused", "wrong"]
    assert not found.problems
    assert [check["method"] for check in found.checks] == ["frozen"]


def test_graphs_are_captured_for_each_phase_and_a_backward_pass_behind_its_forward(monkeypatch):
    captures = []

    def captured(*calls):
        captures.append(len(calls))
        return calls

    monkeypatch.setattr("bench.measure.captured_in_turn", captured)
    monkeypatch.setattr("bench.measure.captured", lambda call: captured(call)[0])
    found = measured(FROZEN, UNFUSED, case=CASES[0], modes=("eager", "graph"))
    assert captures == [1, 1, 2, 2, 1, 1]
    assert [(row.mode, row.method) for row in found.rows] == [
        (mode, name) for _ in PHASES for mode in ("eager", "graph") for name in FEW
    ]


def test_unpacking_is_timed_beside_the_methods_with_a_pass_of_its_own_for_each_of_theirs(monkeypatch):
    pytest.importorskip("bitsandbytes")
    case = Case(8, 64, 32, 4, torch.float32, torch.float32, base="nf4")
    found = measured(FROZEN, FASTLORA, case=case)
    assert found.problems == []
    methods = ("frozen", "fastlora", UNPACKING)
    assert {(row.method, row.phase) for row in found.rows} == set(itertools.product(methods, PHASES))
    seen = []
    monkeypatch.setattr("bench.layer.unpacked", lambda *given: seen.append(given))
    for work in unpacking_works(case, [case.inputs(CPU)]).values():
        work()
    assert len(seen) == 4


def test_what_cannot_be_captured_has_eager_rows_alone(monkeypatch):
    def captured(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("bench.measure.as_graphs", captured)
    found = measured(FROZEN, replace(UNFUSED, external=True), case=CASES[0], modes=("eager", "graph"))
    assert {row.mode for row in found.rows} == {"eager"}
    assert all(row.q25_us <= row.median_us <= row.q75_us and len(row.samples_us) == 2 for row in found.rows)
    assert [problem.split(", ")[-1].split(":")[0] for problem in found.problems] == ["capturing frozen"] * 3
    assert [entry["method"] for entry in found.left_out] == ["unfused"] * 3


def test_operators_of_a_call_are_counted_and_those_of_each_phase():
    x = torch.ones(2, 3)
    work = Work.of(lambda: x.add(x).mul(x), x.clone)
    assert device_events(work, CPU) == [("cpu_op", "add"), ("cpu_op", "mul")]
    found = profile_case(DRY.cases[0], CPU, [FROZEN, UNFUSED])
    counts = {(entry["method"], entry["phase"]): entry["launches"] for entry in found}
    assert counts["frozen", "forward"] < counts["frozen", "forward+backward"]
    assert counts["frozen", "forward"] < counts["unfused", "forward"]
    assert counts["unfused", "backward"] < counts["unfused", "forward+backward"]
    assert all(len(entry["kernels"]) == entry["launches"] for entry in found)


def stepped(*methods, mode="eager", **changes):
    found, task = results(ceilings=CEILINGS._asdict()), small_task(**changes)
    level = Level("mnist", found, effort_on(CPU, 2)._replace(warm_up_rounds=1), [])
    measure_task(level, task, task, mode, "fused", methods)
    return found


def test_every_method_gets_a_row_for_each_part_of_a_step_and_the_whole():
    found = stepped(FROZEN, FASTLORA)
    assert {(row.method, row.phase) for row in found.rows} == {
        (name, part) for name in ("frozen", "fastlora") for part in (*PARTS, "step")
    }
    assert not found.problems
    rows = {row.phase: row for row in found.rows if row.method == "fastlora"}
    whole = rows["step"]
    assert (whole.model, whole.shape, len(whole.samples_us)) == ("small", {"batch": ROWS, "r": 3}, 2)
    assert min(whole.saved_bytes, whole.launches, whole.floor_us) > 0
    assert rows["optimizer"].floor_us is None
    assert whole.samples_us[0] >= sum(rows[part].samples_us[0] for part in PARTS)


@pytest.mark.parametrize(
    ("measure", "where"),
    [(measured, f"{DRY.cases[0]}"), (stepped, "mnist small, eager")],
    ids=["layer", "net"],
)
def test_wrong_and_broken_methods_are_not_timed_and_the_others_are(measure, where):
    found = measure(FROZEN, replace(UNFUSED, tune=wrong_scale), replace(FASTLORA, tune=unfinished))
    assert {row.method for row in found.rows} == {"frozen"}
    assert [check["failure"] is None for check in found.checks] == [True, False]
    assert found.problems == [f"{where}, checking fastlora: RuntimeError: out of resources"]


def test_what_a_step_saves_is_its_inputs_and_adams_ways_launch_apart():
    task = small_task()

    def counts(method, adam="fused"):
        return count_step(Trainer(method.tune(build(), task.names, task.update), task, adam), CPU)

    digits = digits_task(CPU).batches[0]["x"]
    assert digits.untyped_storage().nbytes() == digits.nbytes == 4 * 10 * 784  # and not those of all digits
    full, frozen = counts(FULL), counts(FROZEN)
    assert full["saved_bytes"] - frozen["saved_bytes"] == task.batches[0]["x"].nbytes
    weights = sum(parameter.nbytes for parameter in build().parameters())
    # Adam's two moments lie beside the weights all the time, and the gradients at the peak.
    assert full["peak_bytes"] > 4 * weights > frozen["peak_bytes"]
    assert len({counts(FULL, adam)["launches"] for adam in ADAMS}) == len(ADAMS)


def test_methods_that_do_not_take_a_layer_or_a_net_are_left_out_and_those_absent_say_why(monkeypatch):
    found = measured(ADDMM, FROZEN, case=CASES[3])
    why = "it has no dropout: Unsloth refuses one in its fused layers"
    assert found.left_out == [{"method": "addmm", "why": why, **CASES[3].labels()}]
    assert {row.method for row in found.rows} == {"frozen"}
    assert "nothing to drop" in stepped(METHODS["parametrized"], dropout=0.1).left_out[0]["why"]
    monkeypatch.setattr("bench.methods.libraries.find_spec", lambda name: None)
    methods, absent = present(["fastlora", "loralib"], CPU, torch.float32)
    assert (methods, absent) == ([FASTLORA], {"loralib": "loralib is not installed"})


def test_a_twin_lies_in_the_same_memory_and_freezes_apart():
    model = build()
    copy = twin(model)
    copy.requires_grad_(False)
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.requires_grad
    copy[0] = nn.Identity()
    assert isinstance(model[0], nn.Linear)


def test_the_floor_is_the_longer_of_arithmetic_and_bytes_and_passes_add_up():
    problem = CASES[1].problem
    found = floors([Use(problem)], CEILINGS._replace(matmul_flops=1e6, copy_bytes_per_s=1e30))
    assert found["forward"].floor_us == problem.forward().flops
    assert found["backward"].floor_us == found["backward"].flops == problem.backward().flops
    assert found["forward+backward"] == tuple(map(sum, zip(found["forward"], found["backward"], strict=True)))
    found = floors([Use(problem)], CEILINGS._replace(matmul_flops=1e30, copy_bytes_per_s=1e6))
    assert found["forward"].floor_us == problem.forward().moved


def test_a_nets_floor_is_that_of_every_layer_but_for_the_gradient_of_the_data():
    uses = net_uses(small_task())
    assert [use.problem[:4] for use in uses] == [(ROWS, K, N, 3) for K, N in LAYERS]
    assert [use.needs_dx for use in uses] == [False, True, True]
    first = uses[0].problem
    assert floors(uses[:1], CEILINGS)["backward"].flops == first.backward(needs_dx=False).flops
    found = floors(uses, CEILINGS)
    assert found["step"].flops == found["forward"].flops + found["backward"].flops
    assert found["step"].floor_us == pytest.approx(
        found["forward"].floor_us + found["backward"].floor_us,
        abs=3 * 0.5e-6,  # each of the three is rounded to six decimals
    )


def test_a_layer_that_is_not_adapted_counts_as_the_frozen_one_it_is():
    uses = net_uses(small_task(names=["0"]))
    assert [(use.problem.r, use.needs_dx) for use in uses] == [(3, False), (0, True), (0, True)]


def test_a_gpu_run_begins_with_the_headline_and_has_each_case_once_with_what_belongs_beside_it():
    first, cases = MEASUREMENTS[0], [one.case for one in MEASUREMENTS]
    assert (first.case[:4], first.modes, first.launches) == ((8192, 4096, 4096, 16), ("eager", "graph"), True)
    # The headline has no dropout, and a group needs more layers than one.
    assert set(first.methods) == set(METHODS) - {"fastlora-p0", "grouped"}
    assert len(set(cases)) == len(cases)
    for one in (*MEASUREMENTS, *DRY.measurements):
        assert {"frozen", "fastlora"} <= set(one.methods) <= set(METHODS)
        assert ("fastlora-p0" in one.methods) == (one.case.dropout > 0)
    for M, dtype in itertools.product((2048, 8192), (torch.bfloat16, torch.float32)):  # of the means
        layers = {(c.K, c.N) for c in cases if (c.M, c.r, c.adapter_dtype) == (M, 16, dtype)}
        assert layers >= {*LLAMA_8B, *LLAMA_70B}


def test_packed_layers_are_measured_beside_the_same_ones_plain():
    cases = [one.case for one in packed_measurements("nf4", CPU)]
    assert [case.base for case in cases] == ["nf4", ""] * (len(cases) // 2)
    assert len(set(cases)) == len(cases)


def test_few_variants_need_compiling_and_each_method_that_compiles_has_its_own():
    found = variants_of(MEASUREMENTS)
    ours = [case for name, case in found if name == "fastlora"]
    assert len(ours) < len(MEASUREMENTS)
    assert {c[3:] for c in ours} == {c[3:] for c, *_ in MEASUREMENTS}
    compiled = [case for name, case in found if name == "compiled"]
    assert compiled == [one.case for one in MEASUREMENTS if "compiled" in one.methods]
