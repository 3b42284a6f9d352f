"""What may be trained on: each form of row, and one line that names the line of what is wrong."""

import json

import pytest

from fastlora.recipes.finetune.rows import RowsError, read_rows, split_rows

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": "a", "completion": "b"}, {"text": "a"}])
def test_each_form_is_read_and_other_fields_are_named(tmp_path, row):
    found = read_rows("data", written(tmp_path, {**row, "id": 3}, "", row))
    assert found.rows == (row, row)
    assert found.unused == ("id",)
    assert found.digest != read_rows("data", written(tmp_path, row)).digest


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'text': 1}", "must be JSON"),
        ("[1]", "must be an object"),
        ({"id": 1}, "its fields are id"),
        ({"text": "a", "prompt": "a", "completion": "b"}, "must hold one of"),
        ({"text": " "}, "text must be text that is not empty; got ' '"),
        ({"text": None}, "text must be text that is not empty; got None"),
        ({"prompt": "a", "completion": "b"}, "must hold text, as the rows before it"),
        ({"prompt": "a"}, "its fields are prompt"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number(tmp_path, row, message):
    path = written(tmp_path, {"text": "a"}, "", row)
    with pytest.raises(RowsError) as error:
        read_rows("data", path)
    assert f"{path}, line 3: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a list that is not empty"),
        (TURNS[:1], "there is none"),
        ([{"role": "tool", "content": "a"}], r"messages\[0\].role must be one of"),
        ([TURNS[0], {"role": "assistant", "content": ""}], r"messages\[1\].content must be text"),
        ([{**TURNS[1], "tool_calls": []}], "it has tool_calls too"),
        (["a"], r"messages\[0\].role must be"),
    ],
)
def test_a_bad_message_is_named(tmp_path, messages, message):
    with pytest.raises(RowsError, match=f"line 1: .*{message}"):
        read_rows("data", written(tmp_path, {"messages": messages}))


def test_a_missing_or_empty_file_and_bytes_that_are_no_text_are_named(tmp_path):
    with pytest.raises(RowsError, match="no file"):
        read_rows("data", str(tmp_path / "none.jsonl"))
    with pytest.raises(RowsError, match="at least one row"):
        read_rows("data", written(tmp_path))
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}')
    with pytest.raises(RowsError, match="line 2: must be JSON"):
        read_rows("data", str(tmp_path / "rows.jsonl"))


def test_a_share_is_held_back_by_the_seed(tmp_path):
    rows = read_rows("data", written(tmp_path, *({"text": str(n)} for n in range(10))))
    train, held = split_rows(rows, 0.2, seed=1)
    assert len(train) == 8
    assert {row["text"] for row in train + held} == {str(n) for n in range(10)}
    assert split_rows(rows, 0.2, seed=1) == (train, held)
    assert split_rows(rows, 0.2, seed=2)[1] != held
    assert split_rows(rows, 0.0, seed=1)[1] == []
