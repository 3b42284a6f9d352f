"""What the script that tries the newest releases reads from pytest, and writes into the page."""

import pytest

from scripts.check_newest import MARKS, broken, table, with_found

OUTPUT = """
ERROR    root:log.py:3 a line that a test logged
=========================== short test summary info ============================
FAILED tests/test_a.py::test_one[two words] - ValueError: peft is too old
ERROR tests/adapter_files/test_b.py
2 failed, 3 passed in 1.00s
"""


def test_broken_tests_are_those_of_the_summary_whatever_their_names_hold():
    assert broken(OUTPUT) == [
        ("tests/test_a.py::test_one[two words]", "ValueError: peft is too old"),
        ("tests/adapter_files/test_b.py", ""),
    ]
    assert "| peft | 1 | `test_a.py::test_one[two words]` |" in table({"peft": "1"}, broken(OUTPUT))


def test_the_table_replaces_what_stood_between_the_marks():
    page = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    assert with_found(page, "new") == f"before\n{MARKS[0]}\nnew\n{MARKS[1]}\nafter\n"
    with pytest.raises(ValueError, match="must have the lines"):
        with_found("no marks", "new")
