"""The shipped digits and one net trained on them, shared by all tests: training it takes most of the time."""

import copy

import pytest

from fastlora.recipes.digits import read_sample
from fastlora.recipes.mnist import train_base
from fastlora.recipes.options import MnistOptions


@pytest.fixture(scope="session")
def digits():
    return read_sample()


@pytest.fixture(scope="session")
def trained_base(digits):
    return train_base(MnistOptions(), digits.train)


@pytest.fixture
def base(trained_base):
    """A copy of it, so that no test can spoil another's."""
    return copy.deepcopy(trained_base)
