"""The inputs and the error budget by their old place; they live in fastlora/measuring."""

from fastlora.measuring.errors import (
    assert_within_budget,
    gradients,
    oracle,
    relative_error,
    split_eps,
)
from fastlora.measuring.inputs import Inputs as Operands
from fastlora.measuring.inputs import random_inputs as operands

__all__ = [
    "Operands",
    "assert_within_budget",
    "gradients",
    "operands",
    "oracle",
    "relative_error",
    "split_eps",
]
