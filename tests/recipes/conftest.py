"""The shipped digits and one net trained on some of them, shared by all tests."""

import copy

import pytest

from fastlora.recipes.digits import Digits, read_sample
from fastlora.recipes.mnist.job import train_base
from fastlora.recipes.mnist.options import MnistOptions


@pytest.fixture(scope="session")
def digits():
    return read_sample()


@pytest.fixture(scope="session")
def trained_base(digits):
    """It has seen every fourth digit once; the job's five passes over all of them take ten times as long."""
    few = Digits(*(tensor[::4] for tensor in digits.train))
    return train_base(MnistOptions(epochs=1), few)


@pytest.fixture
def base(trained_base):
    """A copy of it, so that no test can spoil another's."""
    return copy.deepcopy(trained_base)
