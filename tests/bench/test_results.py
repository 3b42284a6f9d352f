"""The results file: whole or not at all, and gone on with only where it fits."""

import json
import os
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from bench import environment as module
from bench.environment import environment
from bench.results import Results, resumed
from fastlora.adapter_files import AdapterError
from tests.bench import rows as made
from tests.bench.rows import CPU, HERE


def row(**changes):
    fields = {"method": "frozen", "phase": "forward", "dtype": "bfloat16", "launches": 1}
    return made.row(shape={"M": 2, "K": 3, "N": 4, "r": 1}, **{**fields, **changes})


ROWS = (row(), row(method="full"))
LABELS = ROWS[0].labels


def results(*rows, **changes):
    parts = {
        "correctness": {
            "tests": {"passed": True, "summary": "3 passed"},
            "graph": {"passed": None, "summary": "not run: no GPU"},
        },
        "ceilings": {"matmul_flops": 1.0},
        "absent": {"fastlora": "no GPU"},
        "left_out": [{"method": "addmm", "why": "no dropout", "dropout": 0.1}],
        "checks": [{"method": "frozen", "failure": None}],
    }
    return made.results(*rows, **{**parts, **changes})


@pytest.fixture
def path(tmp_path):
    """Where full results lie."""
    path = tmp_path / "results.json"
    results(*ROWS, path=path).save()
    return path


def fresh(path, **changes):
    """Results with nothing in them, here but for the changes."""
    return Results(HERE._replace(**changes), command="", started="", path=path)


def test_a_pipe_in_the_files_place_is_refused_and_left(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(AdapterError, match="must be a regular file; it is a FIFO"):
        results(*ROWS, path=tmp_path / "pipe.json").save()
    assert [child.name for child in tmp_path.iterdir() if child.is_fifo()] == ["pipe.json"]


def test_the_command_has_no_folders_of_the_machine(monkeypatch, tmp_path):
    given = ["gpu.py", "--out", str(tmp_path / "new"), f"--table={tmp_path / 'a.json'}", "--only", "bench/a"]
    monkeypatch.setattr(sys, "argv", given)
    found = Results.begin("bench.gpu", torch.device("cpu"))
    assert found.command == "python -m bench.gpu --out new --table=a.json --only bench/a"


@pytest.mark.parametrize("written", [results(*ROWS), fresh(None)], ids=["full", "empty"])
def test_a_file_holds_a_row_a_line_and_reads_back_as_it_was_written(written, path):
    replace(written, path=path).save()
    assert Results.read(path) == written
    lines = [line for line in path.read_text().splitlines() if '"median_us"' in line]
    methods = [json.loads(line.strip().rstrip(","))["method"] for line in lines]
    assert methods == [row.method for row in written.rows]


def test_a_write_that_fails_leaves_the_last_file(path, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        fresh(path).save()
    assert Results.read(path) == results(*ROWS)
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_a_run_goes_on_where_device_versions_and_sources_are_the_same(path):
    assert resumed(fresh(path, commit="def", modified=True)) == results(*ROWS)


@pytest.mark.parametrize(
    "change", [{"sources": "456"}, {"versions": {}}, {"device": {"kind": "cuda"}}], ids=str
)
def test_results_of_another_kind_are_set_aside(change, path):
    new = fresh(path, **change)
    assert resumed(new) is new
    assert Results.read(path.with_name("results.old.json")) == results(*ROWS)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 0}', '{"schema": 1}'])
def test_a_file_that_is_no_results_file_is_set_aside(content, path):
    path.write_text(content)
    new = fresh(path)
    assert resumed(new) is new
    assert path.with_name("results.old.json").read_text() == content


def test_launches_are_noted_in_the_rows_they_belong_to():
    found = results(row(launches=None), row(launches=None, mode="graph"), row(launches=None, method="full"))
    assert not found.has_profiles(LABELS)
    found.add_profiles([{"method": "frozen", "phase": "forward", **LABELS, "launches": 3, "kernels": []}])
    assert [entry.launches for entry in found.rows] == [3, 3, None]
    assert found.has_profiles(LABELS)
    assert not found.has_profiles({**LABELS, "dtype": "float16"})


def test_everything_that_went_wrong_is_a_failure_and_what_did_not_run_is_none():
    assert results().failures() == []
    steps = {
        "tests": {"passed": False, "summary": "1 failed"},
        "graph": {"passed": None, "summary": "not run"},
    }
    checks = [{"method": "addmm", "failure": "dx: error"}]
    bad = results(correctness=steps, checks=checks, problems=["case, forward: RuntimeError"])
    assert bad.failures() == ["tests: 1 failed", "addmm: dx: error", "case, forward: RuntimeError"]


def test_the_environment_names_sources_also_without_git_and_the_versions_of_what_is_compared(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(metadata, "version", absent)
    here = environment(CPU, commit="given")
    assert (here.commit, here.modified, len(here.sources)) == ("given", None, 64)
    assert here == environment(CPU, commit="given")
    assert here.versions["torch"]
    assert {here.versions[name] for name in ("peft", "transformers", "loralib")} == {None}


def test_a_changed_source_changes_the_digest(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    digests = set()
    for text in ("one", "two"):
        (tmp_path / "bench" / "a.py").write_text(text)
        digests.add(module.sources_digest())
    assert len(digests) == 2
