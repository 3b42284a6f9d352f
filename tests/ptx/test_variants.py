"""What Triton compiles for a GPU is right, run in the interpreter; `python -m tests.ptx` runs much more."""

import pytest
import torch

from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import random_inputs
from tests.ptx.children import run_command
from tests.ptx.driver.cases import all_cases, quick_cases, small_tiles
from tests.ptx.driver.reference import element_bounds, philox_mask, unfused


@pytest.fixture(scope="module")
def lines():
    return run_command("tests.ptx", "--quick").stdout.splitlines()


@pytest.mark.parametrize("number", range(len(quick_cases())), ids=lambda n: f"{quick_cases()[n].variant}-{n}")
def test_a_variant_is_right_under_each_schedule(lines, number):
    line = lines[2 + number]
    assert line.endswith("  right"), line


def test_every_class_of_every_table_of_these_targets_has_a_case():
    cases = list(all_cases())
    for architecture, classes in (("sm_80", 4 + 3 + 1), ("sm_90", 5 + 3 + 1)):
        found = {
            (case.dtype, case.precision, case.shape_class, one)
            for case in cases
            for one in case.passes
            if case.architecture == architecture and case.shape_class
        }
        assert len(found) == 2 * classes


def test_the_reference_is_the_formula_that_autograd_differentiates():
    inputs = random_inputs(5, 7, 6, 3, dtype=torch.float32)
    torchs, truth = gradients(inputs), oracle(inputs)
    for name, value in unfused(inputs, torch.ones(5, 7, dtype=torch.float64)).items():
        assert_within_budget(name, value, torchs[name], truth[name])


def test_the_mask_keeps_at_the_rate_asked_for():
    kept = philox_mask(-5, 2**14, 200, 301)
    assert abs(kept.double().mean() - 0.75) < 5 * (0.75 * 0.25 / kept.numel()) ** 0.5


def test_an_element_that_is_off_by_more_than_its_roundings_is_beyond_its_bound():
    inputs = random_inputs(40, 64, 48, 8, dtype=torch.bfloat16)
    D = torch.ones(40, 64, dtype=torch.float64)
    truth = unfused(inputs.to(torch.float64), D)
    bounds = element_bounds(inputs, D, "ieee")
    for name, value in truth.items():
        assert ((value.float().double() - value).abs() <= bounds[name]).all()
    # One column forgotten in the sum over K.
    inputs.x[:, -1] = 0
    wrong = unfused(inputs.to(torch.float64), D)["y"]
    assert ((wrong - truth["y"]).abs() > bounds["y"]).any()


def test_small_tiles_are_such_as_the_architecture_takes():
    forward, backward = small_tiles("sm_90", "half")
    assert (forward.block_m, backward.block_m) == (64, 64)
