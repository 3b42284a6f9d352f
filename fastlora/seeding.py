"""Runs that repeat: one seed for every random generator, and torch's deterministic mode."""

from __future__ import annotations

import os
import random
import sys
from importlib.util import find_spec
from typing import Final

import torch

from fastlora.arguments import check_bool

# numpy's global generator takes no more.
SEEDS: Final = 2**32

_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACES: Final = (":4096:8", ":16:8")


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed Python's random, numpy's global generator where numpy is installed, and torch's on every device.

    Equal seeds give equal runs on the same machine, versions and number of threads. fastlora's own layers are
    deterministic as they are; what `deterministic` changes is the rest of the model:

    - Operators that have only a faster, non-deterministic version raise a RuntimeError.
    - cuDNN neither times its algorithms nor takes non-deterministic ones, so convolutions may be slower.
    - cuBLAS gets a workspace of fixed size for each handle and stream, 8 buffers of 4 MiB.
    - torch fills every new tensor's memory before it is written, y, dx, dA and dB of our layers included: one
      more pass of writing for each. `torch.utils.deterministic.fill_uninitialized_memory = False` saves it.

    Args:
        seed: 0 to 2^32 - 1.
        deterministic: Whether to turn that mode on, for the process. False leaves it as it is.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the seed does not fit in 32 bits.
        RuntimeError: If `deterministic` comes after CUDA's start, when cuBLAS's workspace is no longer read
            from the environment, and the variable was not set. Nothing is changed.
    """
    check_seed(seed)
    check_bool(deterministic, "deterministic")
    if deterministic:
        _be_deterministic()
    random.seed(seed)
    _seed_numpy(seed)
    torch.manual_seed(seed)


def seed_worker(worker_id: int) -> None:
    """Seed Python's random and numpy in a data loader's worker from torch's seed there.

    For `DataLoader(..., worker_init_fn=seed_worker, generator=g)`, where `g` is a seeded torch.Generator:
    each worker then draws its own numbers, and the same ones in every run. torch's generator in a worker is
    seeded by the data loader already, from `g` and the worker's number, afresh in each pass.

    Args:
        worker_id: The worker's number, which is in torch's seed already.
    """
    seed = torch.initial_seed() % SEEDS
    random.seed(seed)
    _seed_numpy(seed)


def check_seed(seed: object) -> int:
    """The seed, if it is an int of 32 bits; else TypeError or ValueError."""
    wanted = f"seed must be an int from 0 to {SEEDS - 1}; got {seed!r}"
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(wanted)
    if not 0 <= seed < SEEDS:
        raise ValueError(wanted)
    return seed


def _seed_numpy(seed: int) -> None:
    """Import numpy where it is installed: imported later, it would start from the system's entropy."""
    # None in sys.modules blocks an import, and find_spec raises ValueError there.
    if sys.modules.get("numpy", ...) is None or find_spec("numpy") is None:
        return
    import numpy as np

    np.random.seed(seed)


def _be_deterministic() -> None:
    if os.environ.get(_WORKSPACE) not in _FIXED_WORKSPACES:
        if torch.cuda.is_initialized():
            raise RuntimeError(
                f"deterministic=True must come before CUDA's first use, or {_WORKSPACE} be one of "
                f"{', '.join(_FIXED_WORKSPACES)} from the start; got {os.environ.get(_WORKSPACE)!r}"
            )
        os.environ[_WORKSPACE] = _FIXED_WORKSPACES[0]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)
