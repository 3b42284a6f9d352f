"""The GPU command as a dry run: every step, tiny, on the CPU. Each step has a quick test in its own file."""

import itertools
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.gpu import main
from bench.layer import PHASES
from bench.methods import GROUPED, METHODS
from bench.results import Results
from bench.settings import DRY
from fastlora_kernels.choice_content import VENDOR

ROOT = Path(__file__).parents[2]
STEPS = {
    *("tests", "soak", "graph", "streams", "memcheck", "racecheck"),
    *("candidates", "tuning", "choices", "compile"),
}
# What torchao says, which Transformers imports where it is installed.
OTHERS = re.compile(
    r"torchao/_C|Enum subclass and is now natively supported|Failed to load CPU gemm_4bit_forward"
)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(folder, process) of one dry run, as a user would run it where torch sees no GPU."""
    out = tmp_path_factory.mktemp("dry") / "made"
    surroundings = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
    surroundings.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


@pytest.mark.exhaustive
def test_a_dry_run_writes_results_tables_picture_and_log_and_nobody_can_take_its_times_for_results(dry):
    out, done = dry
    made = {"results.json", "summary.txt", "linear.png", "numeric-tests.log", "tuning.json", "tables"}
    assert {path.name for path in out.iterdir()} == made | {"choices.json", "choices-times.json"}
    summary = (out / "summary.txt").read_text()
    assert summary.count("not measured") == done.stdout.count("not measured") == 15
    assert "mean nothing" in done.stdout
    assert [line for line in done.stderr.splitlines() if not OTHERS.search(line)] == []
    found = Results.read(out / "results.json")
    assert (found.environment.device["kind"], found.problems) == ("cpu", [])
    assert found.command.startswith("python -m bench.gpu --dry-run")
    for row in found.rows:
        counted = set() if row.phase == "forward+backward" else {"saved_bytes"}
        unknown = {name for name, value in vars(row).items() if value is None}
        assert unknown == {"peak_bytes", "model", "optimizer"} | counted
        assert (set(row.shape), row.mode) == ({"M", "K", "N", "r"}, "dry-run")


@pytest.mark.exhaustive
def test_every_step_of_correctness_ran_or_says_why_not_and_every_method_is_checked_and_timed(dry):
    found = Results.read(dry[0] / "results.json")
    steps = found.correctness
    assert set(steps) == STEPS
    ran = {name for name, step in steps.items() if step["passed"]}
    assert ran >= {"tests", "soak", "streams", "candidates", "tuning", "choices", "compile"}
    assert all(steps[name]["summary"].startswith("not run: ") for name in STEPS - ran)
    assert steps["soak"]["runs"] > 1
    for one in json.loads((dry[0] / "choices-times.json").read_text())["found"]:
        assert VENDOR in one["times_us"]
    assert steps["compile"]["summary"].startswith("8 variants")
    absent = {name for name in ("peft", "loralib") if find_spec(name) is None}
    here = set(METHODS) - absent
    assert set(found.absent) == set(METHODS) - here
    timed = {(row.method, row.phase, row.dropout) for row in found.rows}
    for one in DRY.measurements:
        left_out = {entry["method"] for entry in found.left_out if entry["dropout"] == one.case.dropout}
        assert left_out - {"loralib"} == ({"addmm", "parametrized"} if one.case.dropout else set())
        wanted = itertools.product(here & set(one.methods) - left_out, PHASES, [one.case.dropout])
        assert {entry for entry in timed if entry[2] == one.case.dropout} == set(wanted)
    here -= {GROUPED.name}  # a layer alone has no groups
    assert {check["method"] for check in found.checks if check["failure"] is None} == here
    assert {profile["method"] for profile in found.profiles} == here


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--out", "x"], "torch sees no GPU; --dry-run runs every step on the CPU"),
        (["--dry-run", "--out", f"{ROOT}/bench/results/x"], "--out must not lie in bench/results"),
        (["--dry-run"], "--out"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(arguments, why, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert why in refused.output
    assert not Path("x").exists()
