"""The README's figures come from the results files, and cannot drift."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.figures import NOT_MEASURED, Run, columns, newest
from bench.report import KINDS, README, RESULTS, main, read_runs, with_figures
from tests.bench.rows import HERE, results, row

PLACES = [f"<!-- figures: {kind} -->\nold\n<!-- end of figures: {kind} -->" for kind in KINDS]
EMPTY = "\n".join(["# A title", *PLACES, "End.\n"])
PICTURES = Path("bench/results")


def run(*rows, name="a.json", **changes):
    return Run(Path(name), results(*rows, **changes))


def cells(*runs):
    return {column.head: column.cells for column in columns(newest(runs, "cpu"))}


def test_the_readme_says_what_the_results_say():
    text = README.read_text(encoding="utf-8")
    assert with_figures(text, read_runs(RESULTS), RESULTS.relative_to(README.parent)) == text


def test_what_was_not_measured_is_said_to_be():
    assert with_figures(EMPTY, [], PICTURES).count(NOT_MEASURED) == len(KINDS)


def test_figures_stand_between_their_markers_and_nothing_else_changes():
    told = with_figures(EMPTY, [run(row(), row((2.0, 4.0, 6.0), method="peft"))], PICTURES)
    assert told.startswith("# A title\n<!-- figures: cpu -->\nMultiples")
    assert told.endswith("<!-- end of figures: cuda -->\nEnd.\n")
    assert "old" not in told
    assert told.count(NOT_MEASURED) == 1
    assert with_figures(told, [], PICTURES) == with_figures(EMPTY, [], PICTURES)


def test_a_cell_is_the_median_of_ratios_taken_pair_by_pair():
    (found,) = cells(run(row((1.0, 10.0, 100.0)), row((2.0, 30.0, 400.0), method="peft"))).values()
    assert found["peft"] == (3, 3, 3)
    assert found["fastlora"] == (1, 1, 1)


def test_shapes_of_one_kind_are_one_mean_with_its_range():
    other = {"M": 512, "K": 1024, "N": 1024, "r": 16}
    rows = [row(), row((2.0, 4.0, 6.0), method="peft")]
    rows += [row(shape=other), row((8.0, 16.0, 24.0), method="peft", shape=other)]
    (found,) = cells(run(*rows)).values()
    assert found["peft"] == pytest.approx((2, 4, 8))


def test_saved_bytes_are_compared_where_dropout_acts():
    kind = {"dropout": 0.1, "dtype": "bfloat16"}
    found = cells(run(row(saved_bytes=100, **kind), row(saved_bytes=390, method="peft", **kind)))
    (head,) = (head for head in found if head.startswith("bytes saved"))
    assert found[head]["peft"].middle == pytest.approx(3.9)


def test_the_newest_run_of_each_level_counts():
    early = run(row(), row((2.0, 4.0, 6.0), method="peft"), name="early.json")
    late = run(
        row(), row((5.0, 10.0, 15.0), method="peft"), name="late.json", started="2026-02-02T00:00:00+00:00"
    )
    for order in ((early, late), (late, early)):
        (found,) = cells(*order).values()
        assert found["peft"].middle == 5


def test_figures_of_a_gpu_stand_in_the_gpus_place():
    there = HERE._replace(device={**HERE.device, "kind": "cuda", "name": "a GPU"})
    told = with_figures(EMPTY, [run(row(), environment=there)], PICTURES)
    cpu, gpu = told.split("<!-- end of figures: cpu -->")
    assert NOT_MEASURED in cpu
    assert "a GPU" in gpu


def test_a_large_layers_distance_to_the_floor_and_the_import_are_told():
    rows = [row((11.0, 11.0, 11.0)), row((10.0, 10.0, 10.0), method="frozen")]
    start = row((50_000.0,) * 3, level="startup", phase="import", mode="behind torch", shape={}, dtype="")
    told = with_figures(EMPTY, [run(*rows), run(start, name="b.json")], PICTURES)
    assert "1.10 .. 1.10" in told
    assert "`import fastlora`, torch's own import not counted: 0.050 s." in told


@pytest.mark.parametrize("text", ["", EMPTY + EMPTY, EMPTY.replace("<!-- figures: cpu -->", "")])
def test_markers_must_stand_once(text):
    with pytest.raises(ValueError, match=r"the README must hold '<!-- figures: cpu -->'"):
        with_figures(text, [], PICTURES)


def test_the_command_writes_text_and_picture_and_its_check_finds_drift(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    readme.write_text(EMPTY)
    results(row(), row((2.0, 4.0, 6.0), method="peft")).write(folder / "a.json")
    arguments = ["--readme", str(readme), "--results", str(folder)]
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 1
    assert readme.read_text() == EMPTY
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 0
    assert (folder / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "(results/cpu.png)" in readme.read_text()
    readme.write_text(readme.read_text().replace("2.00", "2.50"))
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 1


def test_a_dry_run_is_no_result(tmp_path):
    results(row(mode="dry-run")).write(tmp_path / "a.json")
    with pytest.raises(ValueError, match="must hold measured times"):
        read_runs(tmp_path)
