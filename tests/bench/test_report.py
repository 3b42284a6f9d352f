"""The README's figures and pictures come from the results files, and cannot drift."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.groups import columns
from bench.pictures import draw
from bench.report import KINDS, NOT_MEASURED, README, RESULTS, compared, main, newest, read_runs
from bench.report import with_figures as with_figures_in
from tests.bench.rows import HERE, LAYER, results, row

PLACES = [f"<!-- figures: {kind} -->\nold\n<!-- end of figures: {kind} -->" for kind in KINDS]
EMPTY = "\n".join(["# A title", *PLACES, "End.\n"])
TWICE = row((2.0, 4.0, 6.0), method="peft")


def with_figures(*runs, text=EMPTY):
    return with_figures_in(text, runs, Path("bench/results"))


def run(*rows, name="a.json", **changes):
    return results(*rows, path=Path(name), **changes)


def cells(*rows):
    return {column.head: column.cells for column in columns(rows)}


def test_the_readme_says_what_the_results_say():
    text = README.read_text(encoding="utf-8")
    assert with_figures_in(text, read_runs(RESULTS), RESULTS.relative_to(README.parent)) == text


def test_figures_stand_between_their_markers_and_what_was_not_measured_is_said_to_be():
    assert with_figures().count(NOT_MEASURED) == len(KINDS)
    told = with_figures(run(row(), TWICE))
    assert told.startswith("# A title\n<!-- figures: cpu -->\nMultiples")
    assert told.endswith("<!-- end of figures: cuda -->\nEnd.\n")
    assert "old" not in told
    assert told.count(NOT_MEASURED) == 1
    assert with_figures(text=told) == with_figures()
    there = HERE._replace(device={**HERE.device, "kind": "cuda", "name": "a GPU"})
    cpu, gpu = with_figures(run(row(), environment=there)).split("<!-- end of figures: cpu -->")
    assert (NOT_MEASURED in cpu, "a GPU" in gpu) == (True, True)


def test_a_cell_is_the_median_of_ratios_pair_by_pair_and_shapes_of_one_kind_are_one_mean_with_its_range():
    (found,) = cells(row((1.0, 10.0, 100.0)), row((2.0, 30.0, 400.0), method="peft")).values()
    assert found == {"fastlora": (1, 1, 1), "peft": (3, 3, 3)}
    other = {**LAYER, "M": 512}
    rows = [row(), TWICE, row(shape=other), row((8.0, 16.0, 24.0), method="peft", shape=other)]
    (found,) = cells(*rows).values()
    assert found["peft"] == pytest.approx((2, 4, 8))


def test_saved_bytes_are_compared_where_dropout_acts():
    kind = {"dropout": 0.1, "dtype": "bfloat16"}
    found = cells(row(saved_bytes=100, **kind), row(saved_bytes=390, method="peft", **kind))
    (head,) = (head for head in found if head.startswith("bytes saved"))
    assert found[head]["peft"].median == pytest.approx(3.9)


def test_the_newest_run_of_each_level_counts():
    early = run(row(), TWICE, name="early.json")
    late = run(row(), row((5.0, 10.0, 15.0), method="peft"), started="2026-02-02T00:00:00+00:00")
    for order in ((early, late), (late, early)):
        (column,) = compared(newest(order, "cpu"))
        assert column.cells["peft"].median == 5


def test_a_run_over_packed_weights_takes_no_other_runs_place():
    packed = {"base": "nf4", "dtype": "bfloat16"}
    rows = [row(**packed), row((2.0, 4.0, 6.0), method="peft", **packed), row(dtype="bfloat16")]
    runs = [run(row(), TWICE), run(*rows, name="b.json", started="2027-01-01T00:00:00+00:00")]
    heads = [column.head for column in compared(newest(runs, "cpu"))]
    assert [("base nf4" in head) for head in heads] == [False, True]
    told = with_figures(*runs)
    assert "| 2.00 | >= 1.20 | met |" in told
    assert all(f"(bench/results/{name}.json)" in told for name in "ab")


def test_a_large_layers_distance_to_the_floor_and_the_import_are_told():
    rows = [row((11.0, 11.0, 11.0)), row((10.0, 10.0, 10.0), method="frozen")]
    start = row((50_000.0,) * 3, level="startup", phase="import", mode="behind torch", shape={}, dtype="")
    told = with_figures(run(*rows), run(start, name="b.json"))
    assert "1.10 .. 1.10" in told
    assert "`import fastlora`, torch's own import not counted: 0.050 s." in told
    assert "| startup" not in told


@pytest.mark.parametrize("text", ["", EMPTY + EMPTY, EMPTY.replace("<!-- figures: cpu -->", "")])
def test_markers_must_stand_once(text):
    with pytest.raises(ValueError, match=r"the README must hold '<!-- figures: cpu -->'"):
        with_figures(text=text)


def test_the_command_writes_text_and_picture_and_its_check_finds_drift(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    readme.write_text(EMPTY)
    results(row(), TWICE, path=folder / "a.json").save()

    def status(*arguments):
        given = ["--readme", str(readme), "--results", str(folder), *arguments]
        return CliRunner().invoke(main, given).exit_code

    assert status("--check") == 1
    assert readme.read_text() == EMPTY
    assert (status(), status("--check")) == (0, 0)
    assert (folder / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "(results/cpu.png)" in readme.read_text()
    readme.write_text(readme.read_text().replace("2.00", "2.50"))
    assert status("--check") == 1


def test_a_dry_run_is_no_result(tmp_path):
    results(row(mode="dry-run"), path=tmp_path / "a.json").save()
    with pytest.raises(ValueError, match="must hold measured times"):
        read_runs(tmp_path)


@pytest.mark.parametrize("others", [[], [TWICE], [TWICE, row(dtype="float16"), row(mode="graph")]])
def test_a_picture_is_drawn_of_whatever_was_measured_beside_ours(others, tmp_path):
    path = tmp_path / "a.png"
    draw(columns(others[:1]), path)
    assert not path.exists()
    draw(columns([row(), *others]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
