"""The error budget itself: what it must refuse."""

import math

import pytest
import torch

from fastlora.measuring.errors import assert_within_budget

TRUTH = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
TORCHS = TRUTH.float() * (1 + 1e-6)


def with_first(tensor, value):
    changed = tensor.clone()
    changed[0] = value
    return changed


def test_what_is_as_near_as_torchs_passes():
    assert_within_budget("y", TRUTH.float() * (1 - 1e-6), TORCHS, TRUTH)


@pytest.mark.parametrize(
    "ours", [TRUTH.float() * (1 + 1e-4), with_first(TORCHS, math.nan), with_first(TORCHS, math.inf)]
)
def test_what_is_farther_or_not_finite_fails(ours):
    with pytest.raises(AssertionError, match=r"y: error .* exceeds the budget"):
        assert_within_budget("y", ours, TORCHS, TRUTH)


@pytest.mark.parametrize(
    ("torchs", "truth"), [(with_first(TORCHS, math.inf), TRUTH), (TORCHS, with_first(TRUTH, math.nan))]
)
def test_torchs_error_must_be_finite_to_measure_by(torchs, truth):
    with pytest.raises(AssertionError, match="y: torch's own error is inf, no measure"):
        assert_within_budget("y", TORCHS, torchs, truth)


def test_another_shape_fails():
    with pytest.raises(AssertionError, match=r"y: shape \[2\] is not \[3\]"):
        assert_within_budget("y", TORCHS[:2], TORCHS, TRUTH)
