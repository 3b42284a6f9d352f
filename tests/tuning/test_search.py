"""The search for tiles: who wins, what is written, and that a dry run goes through every step."""

import itertools
import json

import pytest
import torch

from fastlora.routes.decide import reload_tables
from fastlora.tuning import contest, search
from fastlora.tuning.candidates import SHAPES, candidates
from fastlora.tuning.outcome import Outcome
from fastlora_kernels import configs, tables
from fastlora_kernels.choice_content import VENDOR
from fastlora_kernels.tables import ARCHITECTURES, Tile, Win, load_table, read_table

FIRST, SECOND, THIRD = (Tile(rows, 64, 64, 8, 4, 3) for rows in (64, 128, 256))


def outcome(**times):
    by_name = {"first": FIRST, "second": SECOND, "third": THIRD, "vendor": VENDOR}
    return Outcome((1, 2, 3), {by_name[name]: samples for name, samples in times.items()}, [])


def test_the_tile_with_the_least_geometric_mean_wins():
    outcomes = [
        outcome(first=[10, 10], second=[8, 8], third=[5, 5], vendor=[20, 20]),
        outcome(first=[10, 10], second=[8, 8], third=[20, 20], vendor=[20, 20]),
    ]
    assert search.winner([FIRST, SECOND, THIRD], outcomes) == (SECOND, False)


def test_a_win_within_the_noise_leaves_the_table_as_it_is():
    outcomes = [outcome(first=[10, 10, 10, 10], second=[8, 9, 11, 12], vendor=[9, 9, 12, 12])]
    assert search.winner([FIRST, SECOND], outcomes) == (FIRST, False)


def test_a_tile_that_failed_on_a_shape_is_out_even_the_tables_own():
    outcomes = [outcome(second=[8, 8], third=[5, 5], vendor=[9, 9]), outcome(second=[8, 8], vendor=[9, 9])]
    assert search.winner([FIRST, SECOND, THIRD], outcomes) == (SECOND, False)


def test_the_library_is_taken_where_it_beats_the_best_tile():
    outcomes = [outcome(first=[10, 10], second=[8, 8], vendor=[7, 7])]
    assert search.winner([FIRST, SECOND], outcomes) == (SECOND, True)


def test_a_faster_tile_that_more_ranks_or_dropout_would_not_fit_is_turned_down(monkeypatch):
    outcomes = [outcome(first=[10, 10], second=[8, 8], third=[5, 5], vendor=[20, 20])]
    field = search.Field("wide", "backward", (FIRST, SECOND, THIRD), ())
    monkeypatch.setattr(search, "_faults", lambda _, __, tile: ["too large"] if tile == THIRD else [])
    assert search.fitting_winner("sm_90", field, outcomes) == (SECOND, False, ["too large"])
    monkeypatch.setattr(search, "_faults", lambda *_: ["too large"])
    assert search.fitting_winner("sm_90", field, outcomes) == (FIRST, False, ["too large", "too large"])


def test_a_choice_changes_one_pass_of_one_class():
    table = load_table("sm_90")
    field = search.Field("wide", "backward", (FIRST,), ())
    changed = search.with_choice(table, field, FIRST, library=True, dtype="bfloat16")
    entry = changed.entries["half"]["wide"]
    assert (entry.forward, entry.backward, entry.library) == (
        table.entries["half"]["wide"].forward,
        FIRST,
        (Win("backward", "bfloat16", 16),),
    )
    again = search.with_choice(changed, field, SECOND, library=False, dtype="bfloat16")
    assert again.entries["half"]["wide"].library == ()
    assert {**again.entries["half"], "wide": 0} == {**table.entries["half"], "wide": 0}
    assert {**again.entries, "half": 0} == {**table.entries, "half": 0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_class_of_every_table_has_candidates_and_shapes_of_that_class(architecture):
    table = load_table(architecture)
    for shape_class, entry in table.entries["half"].items():
        tried = candidates(shape_class, "forward", entry.forward)
        assert tried[0] == entry.forward
        assert len(tried) > 2


def test_every_class_of_a_large_gpu_has_shapes_in_both_directions():
    found = [(field.shape_class, field.direction) for field in search.fields(load_table("sm_90"), dry=False)]
    assert set(found) == set(itertools.product(SHAPES, ("forward", "backward")))
    assert found[0] == ("wide", "forward")


@pytest.mark.exhaustive
def test_a_dry_run_writes_measurements_and_a_table_that_can_be_used(tmp_path, monkeypatch):
    # What is timed means nothing here, and the interpreter takes long over it.
    monkeypatch.setattr(contest, "number_of_sets", lambda *_: 1)
    for name, fewer in {"_WARM_UP_ROUNDS": 1, "_ROUNDS": 2}.items():
        monkeypatch.setattr(contest, name, fewer)
    here = {"device": {"name": "a processor"}, "commit": "abc"}
    found = search.tune(torch.device("cpu"), tmp_path, 60, here)
    assert found["passed"]
    assert found["failures"] == []
    measured = json.loads((tmp_path / "tuning.json").read_text())
    assert {field["direction"] for field in measured["fields"]} == {"forward", "backward"}
    times = measured["fields"][0]["contests"][0]["times"]
    assert [entry["tile"] == "vendor" for entry in times] == [False, False, True]
    table = read_table(tmp_path / "tables" / "interpreter.json")
    assert table.measured == {"device": "a processor", "commit": "abc", "results": "tuning.json"}
    assert table.multiprocessors == configs.INTERPRETER.multiprocessors


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLORA_TABLES", str(tmp_path))
    reload_tables()
    yield tmp_path
    reload_tables()


def test_a_folder_of_ones_own_takes_the_place_of_the_packages_tables(own_folder):
    packaged = read_table(tables.FOLDER / "sm_90.json")
    tables.write_table(packaged._replace(multiprocessors=7), own_folder / "sm_90.json")
    assert load_table("sm_90").multiprocessors == 7
    assert load_table("sm_80") == read_table(tables.FOLDER / "sm_80.json")


def test_a_file_that_is_no_table_is_named(own_folder):
    (own_folder / "sm_90.json").write_text('{"entries": []}')
    with pytest.raises(ValueError, match=r"sm_90\.json is no tile table"):
        load_table("sm_90")
