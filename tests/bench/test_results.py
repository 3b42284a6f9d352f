"""The results file: whole or not at all, and gone on with only where it fits."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bench.environment import environment
from bench.results import Results, open_results
from tests.bench import rows as made
from tests.bench.rows import HERE


def row(**changes):
    fields = {"method": "frozen", "phase": "forward", "dtype": "bfloat16", "launches": 1}
    return made.row(shape={"M": 2, "K": 3, "N": 4, "r": 1}, **{**fields, **changes})


def results(**changes):
    full = {
        "correctness": {
            "tests": {"passed": True, "summary": "3 passed"},
            "graph": {"passed": None, "summary": "not run: no GPU"},
        },
        "ceilings": {"matmul_flops": 1.0},
        "absent": {"fastlora": "no GPU"},
        "left_out": [{"method": "addmm", "why": "no dropout", "dropout": 0.1}],
        "checks": [{"method": "frozen", "failure": None}],
        "rows": [row(), row(method="full")],
    }
    rows = {**full, **changes}.pop("rows")
    return made.results(
        *rows, **{name: value for name, value in {**full, **changes}.items() if name != "rows"}
    )


def test_a_file_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "results.json"
    results().write(path)
    assert Results.read(path) == results()


def test_a_file_holds_a_row_a_line(tmp_path):
    path = tmp_path / "results.json"
    results().write(path)
    lines = path.read_text().splitlines()
    assert sum('"median_us"' in line for line in lines) == 2
    assert [json.loads(line.strip().rstrip(",")) for line in lines if '"median_us"' in line]


def test_empty_results_are_json_too(tmp_path):
    path = tmp_path / "results.json"
    empty = Results(environment=HERE, command="", started="")
    empty.write(path)
    assert json.loads(path.read_text())["rows"] == []
    assert Results.read(path) == empty


def test_a_write_that_fails_leaves_the_last_file(tmp_path, monkeypatch):
    def half(path, text, **_):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    path = tmp_path / "results.json"
    results().write(path)
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        results(rows=[]).write(path)
    assert Results.read(path) == results()


def test_a_run_goes_on_where_device_versions_and_sources_are_the_same(tmp_path):
    path = tmp_path / "results.json"
    results().write(path)
    fresh = Results(environment=HERE._replace(commit="def", modified=True), command="", started="")
    assert open_results(path, fresh) == results()


@pytest.mark.parametrize(
    "change",
    [{"sources": "456"}, {"versions": {}}, {"device": {"kind": "cuda"}}],
    ids=lambda change: next(iter(change)),
)
def test_results_of_another_kind_are_set_aside(change, tmp_path):
    path = tmp_path / "results.json"
    results().write(path)
    fresh = Results(environment=HERE._replace(**change), command="", started="")
    assert open_results(path, fresh) is fresh
    assert Results.read(tmp_path / "results.old.json") == results()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 0}', '{"schema": 1}'])
def test_a_file_that_is_no_results_file_is_set_aside(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    fresh = Results(environment=HERE, command="", started="")
    assert open_results(path, fresh) is fresh
    assert (tmp_path / "results.old.json").read_text() == content


LABELS = row().labels


def test_a_case_is_known_by_its_rows():
    assert LABELS["shape"] == {"M": 2, "K": 3, "N": 4, "r": 1}
    assert results().has(LABELS)
    for other in ({"adapter_dtype": "bfloat16"}, {"dropout": 0.1}, {"bias": True}):
        assert not results().has({**LABELS, **other})
    assert not results(rows=[]).has(LABELS)


def test_launches_are_noted_in_the_rows_they_belong_to():
    found = results(
        rows=[row(launches=None), row(launches=None, mode="graph"), row(launches=None, method="full")]
    )
    assert not found.has_profile(LABELS)
    found.add_profiles([{"method": "frozen", "phase": "forward", **LABELS, "launches": 3, "kernels": []}])
    assert [entry.launches for entry in found.rows] == [3, 3, None]
    assert found.has_profile(LABELS)
    assert not found.has_profile({**LABELS, "dtype": "float16"})


def test_everything_that_went_wrong_is_a_failure():
    assert results().failures() == []
    bad = results(
        correctness={
            "tests": {"passed": False, "summary": "1 failed, 2 passed"},
            "soak": {"passed": False, "summary": "different"},
            "racecheck": {"passed": None, "summary": "not run"},
        },
        checks=[{"method": "addmm", "failure": "dx: error"}],
        problems=["case, forward: RuntimeError"],
    )
    assert bad.failures() == [
        "tests: 1 failed, 2 passed",
        "soak: different",
        "addmm: dx: error",
        "case, forward: RuntimeError",
    ]


def test_the_environment_names_the_sources_also_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    here = environment(torch.device("cpu"), commit="given")
    assert (here.commit, here.modified) == ("given", None)
    assert len(here.sources) == 64
    assert here == environment(torch.device("cpu"), commit="given")


def test_the_environment_knows_the_versions_of_what_is_compared(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    versions = environment(torch.device("cpu")).versions
    assert versions["torch"] == torch.__version__
    assert {versions[name] for name in ("peft", "transformers", "loralib", "transformer-engine")} == {None}


def test_a_changed_source_changes_the_digest(monkeypatch, tmp_path):
    from bench import environment as module

    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    source = Path(tmp_path / "bench" / "a.py")
    source.write_text("one")
    before = module.sources_digest()
    source.write_text("two")
    assert module.sources_digest() != before
