"""Faults planted in the kernels are found; `python -m tests.ptx.mutants` plants all of them."""

import inspect

import pytest

from tests.ptx.children import run_command
from tests.ptx.driver.mutants import CASES, MUTANTS
from tests.ptx.driver.persistent_backward_mutants import PERSISTENT_BACKWARD_MUTANTS
from tests.ptx.driver.persistent_mutants import PERSISTENT_CASES, PERSISTENT_MUTANTS
from tests.ptx.driver.plant import source_changes
from tests.ptx.driver.segment_mutants import SEGMENT_CASES, SEGMENT_MUTANTS

ALL = (*MUTANTS, *SEGMENT_MUTANTS, *PERSISTENT_MUTANTS, *PERSISTENT_BACKWARD_MUTANTS)
# One in the source and one in the PTX, on either architecture.
QUICK = ("publish is relaxed", "TMA loads are not waited for")


@pytest.fixture(scope="module")
def done():
    return run_command("tests.ptx.mutants", "--schedules", "2", "--only", *QUICK)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(done, name):
    line = next((line for line in done.stdout.splitlines() if line.startswith(name)), done.stderr)
    assert "found in 2 of 2: race" in line, line


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_the_kernels_without_it_are_right(done, name):
    assert f"control: {name}" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_mutant_has_a_name_of_its_own_and_a_case():
    assert len({mutant.name for mutant in ALL}) == len(ALL)
    assert {mutant.case for mutant in ALL} <= set(CASES | SEGMENT_CASES | PERSISTENT_CASES)


def test_each_fault_still_has_its_place_in_the_kernels():
    gone = [
        (mutant.name, place, old)
        for mutant in ALL
        for place, function, old, _ in source_changes(mutant)
        if old not in inspect.getsource(function.fn)  # `.src` is missing under the interpreter
    ]
    assert not gone
