"""The tile tables: read and written without loss, and in the form in which they are committed."""

import pytest

from fastlora_kernels.tables import (
    ARCHITECTURES,
    FOLDER,
    Entry,
    Win,
    load_table,
    read_table,
    tile_of,
    write_table,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_table_is_written_as_it_is_committed(architecture, tmp_path):
    write_table(load_table(architecture), tmp_path / "table.json")
    committed = (FOLDER / f"{architecture}.json").read_text(encoding="utf-8")
    assert (tmp_path / "table.json").read_text(encoding="utf-8") == committed


def test_a_measured_choice_survives_the_file(tmp_path):
    forward, backward = (tile_of(each, 64, 128, 32, 4, 8, 2) for each in ("forward", "backward"))
    measured = {"device": "a GPU", "commit": "abc", "results": "bench/results/x.json"}
    table = load_table("sm_90")
    entries = {
        **table.entries,
        "half": {"square": Entry(forward, backward, library=(Win("backward", "bfloat16", 16),))},
    }
    table = table._replace(measured=measured, entries=entries)
    write_table(table, tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == table


def test_every_architecture_has_a_table_and_every_table_an_architecture():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ARCHITECTURES)
