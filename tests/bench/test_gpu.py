"""The GPU command as a dry run: every step, tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import main, parse
from bench.methods import METHODS
from bench.phases import PHASES
from bench.results import Results

ROOT = Path(__file__).parents[2]
ROW = {
    "level": str,
    "method": str,
    "phase": str,
    "dtype": str,
    "adapter_dtype": str,
    "shape": dict,
    "dropout": float,
    "mode": str,
    "median_us": float,
    "q25_us": float,
    "q75_us": float,
    "peak_bytes": type(None),
    "launches": int,
    "floor_us": float,
    "samples_us": list,
}


def command(*arguments):
    """Run the command as a user would, where torch sees no GPU."""
    surroundings = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
    surroundings.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *map(str, arguments)],
        cwd=ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(folder, process) of one dry run."""
    out = tmp_path_factory.mktemp("dry") / "made"
    done = command("--dry-run", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def content(out):
    return json.loads((out / "results.json").read_text())


def test_a_dry_run_writes_results_tables_picture_and_log(dry):
    out, done = dry
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "summary.txt",
        "linear.png",
        "correctness.log",
    }
    assert (out / "summary.txt").read_text().strip() in done.stdout
    assert done.stderr == ""


def test_its_file_follows_the_schema(dry):
    found = content(dry[0])
    assert list(found) == [
        "schema", "device", "versions", "commit", "modified", "sources", "command", "started", "correctness",
        "ceilings", "absent", "problems", "checks", "profiles", "rows",
    ]  # fmt: skip
    assert found["schema"] == 1
    assert found["versions"]["torch"]
    assert found["command"].startswith("python -m bench.gpu --dry-run")
    for row in found["rows"]:
        assert {name: type(value) for name, value in row.items()} == ROW
        assert set(row["shape"]) == {"M", "K", "N", "r"}


def test_nobody_can_take_its_times_for_results(dry):
    found = content(dry[0])
    assert found["device"]["kind"] == "cpu"
    assert {row["mode"] for row in found["rows"]} == {"dry-run"}
    assert "mean nothing" in dry[1].stdout


def test_every_method_is_checked_and_timed_in_every_phase(dry):
    found = content(dry[0])
    assert found["absent"] == {}
    assert found["problems"] == []
    timed = {(row["method"], row["phase"], row["adapter_dtype"]) for row in found["rows"]}
    assert timed == {(m, p, dtype) for m in METHODS for p in PHASES for dtype in ("float16", "float32")}
    assert {check["method"] for check in found["checks"]} == set(METHODS)
    assert all(check["failure"] is None for check in found["checks"])


def test_the_numeric_tests_and_the_soak_ran(dry):
    found = content(dry[0])["correctness"]
    assert found["tests"]["passed"]
    assert "passed" in found["tests"]["summary"]
    assert found["soak"]["passed"]
    assert found["soak"]["runs"] > 1


def test_a_second_run_goes_on_where_the_first_ended(dry, tmp_path):
    first = Results.read(dry[0] / "results.json")
    half = len(first.rows) // 2
    kept = first.rows[:half]
    first.rows = list(kept)
    first.write(tmp_path / "results.json")
    done = command("--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    again = Results.read(tmp_path / "results.json")
    assert again.rows[:half] == kept
    assert len(again.rows) == 2 * half
    assert not (tmp_path / "correctness.log").exists()
    assert "times     1/" not in done.stdout


def test_half_a_run_can_be_asked_for_and_time_can_run_out(tmp_path):
    done = command("--dry-run", "--only", "measure", "--seconds", "0", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = content(tmp_path)
    assert found["correctness"] == {"tests": None, "soak": None}
    assert found["ceilings"]["matmul_flops"] > 0
    assert found["rows"] == []
    assert "time is up before M=24 32->48" in done.stdout


def test_failures_are_printed_last_and_set_the_exit_status(tmp_path, monkeypatch, capsys, dry):
    bad = Results.read(dry[0] / "results.json")
    bad.problems.append("some case: RuntimeError")
    bad.write(tmp_path / "results.json")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("bench.gpu.open_results", lambda path, fresh: bad)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    assert main(["--dry-run", "--out", str(tmp_path)]) == 1
    assert "FAILED: some case: RuntimeError" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--out", "x"], "torch sees no GPU; --dry-run runs every step on the CPU"),
        (
            ["--dry-run", "--out", str(ROOT / "bench" / "results" / "x")],
            "--out must not lie in bench/results",
        ),
        (["--dry-run"], "--out"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(arguments, why, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2
    assert why in capsys.readouterr().err
    assert not Path("x").exists()
