"""The persistent kernels for sm_90 as compiled, in the interpreter; `python -m tests.ptx` runs all cases."""

import pytest

from tests.ptx.children import run_command
from tests.ptx.driver.persistent import persistent_cases
from tests.ptx.driver.persistent_mutants import PERSISTENT_CASES


@pytest.mark.exhaustive
@pytest.mark.parametrize("only", ["130x72x136 r16", "columns, no bias, backward 130x200x136 r5"])
def test_a_pass_is_right_as_compiled(only):
    done = run_command("tests.ptx", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases right, 0 wrong" in done.stdout


@pytest.mark.exhaustive
def test_a_planted_fault_is_found():
    done = run_command("tests.ptx.mutants", "--persistent", "--schedules", "1", "--only", "released twice")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found in 1 of 1: " in done.stdout


def test_each_pass_has_both_sizes_of_tiles_every_block_of_ranks_and_several_residencies():
    found = list(persistent_cases())
    for name in ("forward", "backward"):
        mine = [case for case in found if case.passes == (name,)]
        assert {case.persistent for case in mine} == {128, 256}
        assert {case.r for case in mine} >= {1, 16, 32, 64}
        assert {case.resident for case in mine} >= {1, 2, 3}
        assert {(case.dtype, case.adapter or case.dtype) for case in mine} == {
            ("bf16", "bf16"),
            ("bf16", "fp32"),
            ("fp16", "fp16"),
        }
        assert any(name in case.passes for case in PERSISTENT_CASES.values())
