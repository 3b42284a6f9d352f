"""The product that unpacks W itself, compiled for two GPUs: W's bits, y, and other orders of its programs."""

import pytest

from tests.ptx.children import run_command


@pytest.mark.exhaustive
def test_the_kernel_of_few_rows_is_right_for_both_kinds_of_matrix_units():
    done = run_command("tests.ptx.driver.few_rows")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(": right") for line in lines)
