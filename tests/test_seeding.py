"""One seed for every generator."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastlora.seeding import seed_all, seed_worker
from tests.test_imports import run_without


def draws():
    """A number of each generator."""
    return random.random(), float(np.random.rand()), torch.rand(1).item()


@pytest.fixture(autouse=True)
def settings_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    cudnn.benchmark, cudnn.deterministic = before[:2]
    torch.use_deterministic_algorithms(before[2])


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_the_same_seed_gives_the_same_draws_of_every_generator(seed):
    seed_all(seed)
    first = draws()
    second = draws()
    seed_all(seed)
    assert draws() == first
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_another_seed_gives_other_draws():
    seed_all(1)
    first = draws()
    seed_all(2)
    assert all(one != other for one, other in zip(first, draws(), strict=True))


def test_every_device_is_seeded_through_torch(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seed_all(5)
    assert seeded == [5]


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_seed_outside_32_bits_is_refused_and_nothing_is_seeded(seed, error):
    state = random.getstate()
    with pytest.raises(error, match=f"seed must be an int from 0 to 4294967295; got {seed!r}"):
        seed_all(seed, deterministic=True)
    assert random.getstate() == state
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_mode_is_off_unless_asked_for():
    seed_all(0)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_deterministic_mode_refuses_what_cannot_be_deterministic():
    torch.backends.cudnn.benchmark = True
    seed_all(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_it_stays_on_when_a_later_seed_does_not_ask_for_it():
    seed_all(0, deterministic=True)
    seed_all(1)
    assert torch.are_deterministic_algorithms_enabled()


def test_a_workspace_of_the_users_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_all(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_deterministic_mode_after_cudas_start_is_an_error_that_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    state = random.getstate()
    with pytest.raises(RuntimeError, match="must come before CUDA's first use"):
        seed_all(0, deterministic=True)
    assert random.getstate() == state
    assert not torch.are_deterministic_algorithms_enabled()


class Draws(Dataset):
    """What the generators of the worker give, whatever row is asked for."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([random.random(), np.random.rand()], dtype=torch.float64)


def one_pass(seed):
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(Draws(), num_workers=2, worker_init_fn=seed_worker, generator=generator)
    return torch.cat(list(loader))


# From Python 3.12 on, forking a process with threads warns; torch has some.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_data_loader_workers_repeat_their_draws_and_differ_from_each_other():
    first = one_pass(3)
    assert torch.equal(one_pass(3), first)
    assert len(first.unique()) == first.numel()


def test_a_worker_is_seeded_by_torchs_seed_alone():
    torch.manual_seed(2**40 + 9)
    random.seed(1)
    np.random.seed(1)
    seed_worker(0)
    first = draws()[:2]
    seed_worker(1)
    assert draws()[:2] == first
    random.seed(9)
    np.random.seed(9)
    assert draws()[:2] == first


@pytest.mark.exhaustive
def test_without_numpy_the_rest_is_seeded():
    code = """
import random, torch
from fastlora.seeding import seed_all
seed_all(3)
first = random.random(), torch.rand(1).item()
seed_all(3)
print(first == (random.random(), torch.rand(1).item()))
"""
    assert run_without(["numpy"], code) == "True"


@pytest.mark.exhaustive  # two more processes; what is imported before is seeded in this one
def test_numpy_imported_afterwards_is_seeded_too():
    code = "from fastlora.seeding import seed_all\nseed_all(3)\nimport numpy\nprint(numpy.random.rand())"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
