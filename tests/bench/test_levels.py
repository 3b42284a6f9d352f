"""The levels' commands, with little to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import first_step, linear, mnist, model, startup
from bench.cache import private_cache_bytes
from bench.cases import Case, Measurement
from bench.effort import effort_on
from bench.groups import comparable
from bench.nets import TUNERS
from bench.results import Results
from tests.bench.small_net import small_task

CPU = torch.device("cpu")
CASE = Case(6, 10, 12, 2, torch.float32, torch.float32, bias=True)
MIXED = Case(6, 10, 12, 2, torch.float16, torch.float32, dropout=0.1)


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    def effort(device, rounds):
        return effort_on(device, rounds)._replace(warm_up_rounds=1, matmul_size=32, copy_bytes=2**16)

    for level in (linear, mnist, model):
        monkeypatch.setattr(level, "effort_on", effort)
    measurements = (
        Measurement(CASE, ("frozen", "unfused", "fastlora"), ("eager",), launches=True),
        Measurement(MIXED, ("unfused", "fastlora"), ("eager",)),
    )
    monkeypatch.setattr(linear, "linear_measurements", lambda device: measurements)
    monkeypatch.setattr(mnist, "digits_task", lambda device: small_task())
    monkeypatch.setattr("bench.level.torch.set_flush_denormal", lambda flush: True)


def run(level, tmp_path, *arguments):
    """(exit status, what was written) of a level's command."""
    path = tmp_path / "results.json"
    status = level.main(["--device", "cpu", "--rounds", "2", "--json", str(path), *arguments])
    return status, Results.read(path)


def test_a_layer_is_measured_in_every_phase_with_what_it_saves(tmp_path, capsys):
    picture = tmp_path / "linear.png"
    status, found = run(linear, tmp_path, "--picture", str(picture))
    assert (status, found.problems) == (0, [])
    timed = {(row.method, row.phase) for row in found.rows if row.labels == CASE.labels()}
    phases = ("forward", "backward", "forward+backward")
    assert timed == {(method, phase) for method in ("frozen", "unfused", "fastlora") for phase in phases}
    saved = {(row.method, row.dropout): row.saved_bytes for row in found.rows if row.phase == phases[2]}
    assert saved["frozen", 0.0] == 0
    assert saved["fastlora", 0.1] < saved["unfused", 0.1]
    assert all(row.launches for row in found.rows if row.labels == CASE.labels())
    assert [found.ceilings["matmul_dtype"], found.other_ceilings[0]["matmul_dtype"]] == ["float32", "float16"]
    assert found.command.startswith("python -m bench.linear --device cpu")
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "linear 6x10->12 r2, fp32, bias, eager" in printed
    assert "absent    lorafusion: --lorafusion PATH was not given" in printed


def test_methods_can_be_chosen_and_unknown_ones_are_refused(tmp_path, capsys):
    _, found = run(linear, tmp_path, "--methods", "fastlora")
    assert {row.method for row in found.rows} == {"fastlora"}
    with pytest.raises(SystemExit) as refused:
        run(linear, tmp_path, "--methods", "slowlora")
    assert refused.value.code == 2
    assert "slowlora" in capsys.readouterr().err


def test_a_shape_that_a_seldom_method_is_left_out_of_is_listed(tmp_path):
    _, found = run(linear, tmp_path, "--methods", "compiled", "frozen")
    assert {entry["why"] for entry in found.left_out} == {linear.SELDOM_WHY}
    assert len(found.left_out) == 2


def test_the_step_of_a_net_is_split_and_the_exit_status_tells_of_wrong_methods(tmp_path, monkeypatch):
    status, found = run(mnist, tmp_path, "--methods", "frozen", "fastlora", "--adam", "fused")
    assert status == 0
    assert {row.phase for row in found.rows} == {"forward", "backward", "optimizer", "step"}
    assert {row.level for row in found.rows} == {"mnist"}

    def broken(model, names, update):
        raise RuntimeError("out of resources")

    monkeypatch.setitem(TUNERS, "fastlora", replace(TUNERS["fastlora"], tune=broken))
    status, found = run(mnist, tmp_path, "--methods", "frozen", "fastlora", "--adam", "fused")
    assert (status, len(found.problems)) == (1, 1)
    assert {row.method for row in found.rows} == {"frozen"}


def test_each_way_to_compute_adam_is_measured_beside_the_others(tmp_path):
    status, found = run(mnist, tmp_path, "--methods", "fastlora")
    assert status == 0
    steps = [row for row in found.rows if row.phase == "step"]
    assert [row.optimizer for row in steps] == ["fused Adam", "foreach Adam"]
    assert len(comparable(steps)) == 2


@pytest.mark.filterwarnings("default")
def test_a_llama_is_measured_in_each_mode(tmp_path):
    pytest.importorskip("transformers")
    few = ("--sizes", "tiny", "--length", "8", "--rank", "2", "--methods", "full", "fastlora")
    status, found = run(model, tmp_path, *few)
    assert (status, found.problems) == (0, [])
    steps = {(row.mode, row.method): row for row in found.rows if row.phase == "step"}
    assert set(steps) == {(mode, name) for mode in ("eager", "checkpoint") for name in ("full", "fastlora")}
    assert steps["checkpoint", "fastlora"].saved_bytes < steps["eager", "fastlora"].saved_bytes
    assert steps["eager", "full"].shape["length"] == 8


def test_a_first_step_is_timed_in_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setitem(first_step.CASES, "cpu", CASE)
    assert first_step.main(["fastlora", "--device", "cpu"]) == 0
    taken = json.loads(capsys.readouterr().out)
    assert set(taken) == set(first_step.STEPS)
    assert all(seconds > 0 for seconds in taken.values())


def test_startup_times_imports_and_first_steps_with_cold_then_warm_caches(tmp_path, monkeypatch):
    ran = []

    def output(arguments, variables):
        ran.append((arguments[0], *sorted(variables)))
        if arguments[0] == "-c":
            return ["a warning", "9.0" if len(ran) == 1 else "0.25"]
        return ["a warning", '{"first step": 2.0, "second step": 0.5}']

    monkeypatch.setattr(startup, "output_of", output)
    monkeypatch.setattr(startup, "PACKAGES", ("fastlora", "nowhere_to_be_found"))
    status, found = run(startup, tmp_path, "--methods", "fastlora")
    assert status == 0
    assert found.absent == {"nowhere_to_be_found": "nowhere_to_be_found is not installed"}
    medians = {(row.phase, row.mode): row.median_us for row in found.rows}
    assert medians == {
        ("import", "behind torch"): 250_000,
        **{("first step", f"{kind} caches"): 2_000_000 for kind in ("cold", "warm")},
        **{("second step", f"{kind} caches"): 500_000 for kind in ("cold", "warm")},
    }
    assert [row.samples_us for row in found.rows if row.phase == "import"] == [[250_000, 250_000]]
    assert ran.count(("-c",)) == 3  # one more than asked for: the first is not counted
    assert ran.count(("-m", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")) == 4


def test_a_process_that_fails_is_an_error_with_its_last_line():
    with pytest.raises(RuntimeError, match=r"ended with status 1: ValueError: no"):
        startup.output_of(["-c", "raise ValueError('no')"], {})


def test_the_caches_of_all_cores_add_up_once_each(tmp_path):
    def cache(cpu, index, level, size, shared):
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (
            ("level", level),
            ("size", size),
            ("shared_cpu_list", shared),
            ("type", "Unified"),
        ):
            Path(folder, name).write_text(f"{text}\n")

    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        cache(cpu, 0, 1, "48K", str(cpu))
        cache(cpu, 2, 2, "2M", shared)
        cache(cpu, 3, 3, "300M", "0-2")
    assert private_cache_bytes(tmp_path) == 2 * 2**21
    assert private_cache_bytes(tmp_path / "none") == 0
