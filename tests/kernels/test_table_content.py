"""What a tile table may hold: everything else is refused in one line that names it."""

import json
import os

import pytest

from fastlora.routes.decide import reload_tables
from fastlora_kernels.tables import FOLDER, load_table, read_table

SQUARE = ("entries", "half", "square")


def written(tmp_path, place, value):
    """The table of sm_90 with one value changed, or taken out."""
    content = json.loads((FOLDER / "sm_90.json").read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path = tmp_path / "sm_90.json"
    path.write_text(json.dumps(content))
    return path


def refusal(path):
    with pytest.raises(ValueError, match=r"sm_90\.json is no tile table") as raised:
        read_table(path)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((*SQUARE, "forward", "block_m"), 0, "entries.half.square.forward.block_m must be one of 16, 32"),
        ((*SQUARE, "forward", "block_m"), -16, "got -16"),
        ((*SQUARE, "forward", "block_m"), True, "got True"),
        (
            (*SQUARE, "backward", "block_n"),
            48,
            "backward.block_n must be one of 16, 32, 64, 128, 256; got 48",
        ),
        ((*SQUARE, "backward", "block_k"), 16.0, r"backward.block_k must be one of 64, 128, 256; got 16.0"),
        ((*SQUARE, "forward", "block_n"), 32, r"forward.block_n must be one of 64, 128, 256; got 32"),
        ((*SQUARE, "forward", "num_warps"), 7, "num_warps must be one of 1, 2, 4, 8, 16; got 7"),
        ((*SQUARE, "forward", "num_stages"), 0, "num_stages must be 1 to 8; got 0"),
        ((*SQUARE, "forward", "group"), 0, "group must be 1 to 1024; got 0"),
        ((*SQUARE, "forward", "group"), None, "entries.half.square.forward has no group"),
        ((*SQUARE, "forward", "depth"), 3, "has an unknown 'depth'"),
        ((*SQUARE, "forward"), [1], "entries.half.square.forward must be an object; got"),
        ((*SQUARE, "library"), ["forward"], "library must be an object; got 'forward'"),
        ((*SQUARE, "library"), "forward", "library must be a list"),
        (
            (*SQUARE, "library"),
            [{"direction": "up", "dtype": "bfloat16", "r": 16}],
            "direction must be one of forward, backward; got 'up'",
        ),
        ((*SQUARE, "library"), [{"direction": "forward", "dtype": "bfloat16", "r": 0}], "library.r must be"),
        (SQUARE, None, "entries.half has no square"),
        (("entries", "half", "huge"), {}, "entries.half has an unknown 'huge'"),
        (("entries", "ieee"), None, "entries has no ieee"),
        (("multiprocessors",), 0, "multiprocessors must be 1 to 4096; got 0"),
        (("shared_memory",), -1, "shared_memory must be"),
        (("measured",), "x" * 5000, "measured must map names to texts or be null"),
    ],
)
def test_a_value_that_no_kernel_could_run_with_is_named(tmp_path, place, value, message):
    assert message in refusal(written(tmp_path, place, value))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"", b"[]", b" " * 300_000, b'{"a": 1}'])
def test_a_file_that_holds_no_table_is_refused(tmp_path, content):
    path = tmp_path / "sm_90.json"
    path.write_bytes(content)
    refusal(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "sm_90.json")
    assert "it is no regular file" in refusal(tmp_path / "sm_90.json")


@pytest.fixture
def _tables_anew():
    reload_tables()
    yield
    reload_tables()


@pytest.mark.usefixtures("_tables_anew")
@pytest.mark.parametrize("folder", ["", "/no/such/folder", __file__, "x" * 5000])
def test_a_folder_of_tables_that_is_none_is_refused_by_name(monkeypatch, folder):
    monkeypatch.setenv("FASTLORA_TABLES", folder)
    with pytest.raises(
        ValueError, match="FASTLORA_TABLES must name a folder of tile tables; got '"
    ) as raised:
        load_table("sm_90")
    assert len(str(raised.value)) < 1000
