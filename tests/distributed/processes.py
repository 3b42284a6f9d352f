"""Tests whose bodies run in several processes at once, one spawn for all bodies of a group.

    processes = Processes(2)

    @processes.test
    def test_something(folder): ...

Each body runs on every rank, with a process group and a folder that the ranks share; it passes where it
passes on all of them. A rank that fails ends its process, so that the others do not wait for it.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

Body = Callable[[Path], None]

# What every process needs; the server imports it once, and each process is a fork of it.
_PRELOADED = (
    "torch._dynamo",  # an optimizer imports it
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "fastlora",
    "tests.distributed.processes",
)
_TIMEOUT = timedelta(seconds=60)


class Processes:
    """A group of tests that run in the same `world_size` processes, in the order of their definition."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.bodies: dict[str, Body] = {}
        self._outcomes: dict[str, list[str]] | None = None

    def test(self, body: Body) -> Callable[[pytest.TempPathFactory], None]:
        """Make a pytest test of a body; its name, as that of the group, must be a global of its module."""
        name, module = body.__name__, body.__module__
        self.bodies[name] = body

        def report(tmp_path_factory: pytest.TempPathFactory) -> None:
            if self._outcomes is None:
                self._outcomes = self._run(module, tmp_path_factory.mktemp("processes"))
            faults = self._outcomes[name]
            assert not faults, "\n".join(faults)

        report.__name__ = report.__qualname__ = name
        report.__doc__ = body.__doc__
        return report

    def _run(self, module: str, folder: Path) -> dict[str, list[str]]:
        """{name of a body: what went wrong, by rank}."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_PRELOADED))
        group = next(name for name, value in vars(importlib.import_module(module)).items() if value is self)
        ranks = [
            context.Process(target=_work, args=(module, group, rank, folder))
            for rank in range(self.world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        ends = [f"not reached; the process ended with {rank.exitcode}" for rank in ranks]
        return {name: self._faults(folder / name, ends) for name in self.bodies}

    def _faults(self, folder: Path, ends: list[str]) -> list[str]:
        reports = [folder / f"rank{rank}.txt" for rank in range(self.world_size)]
        texts = [path.read_text() if path.exists() else ends[rank] for rank, path in enumerate(reports)]
        return [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]


def _work(module: str, group: str, rank: int, folder: Path) -> None:
    """What a process does: run every body, and leave a report of each."""
    processes = getattr(importlib.import_module(module), group)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    kind = "nccl" if _has_gpus(processes.world_size) else "gloo"
    if kind == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        kind,
        store=distributed.FileStore(str(folder / "store"), processes.world_size),
        rank=rank,
        world_size=processes.world_size,
        timeout=_TIMEOUT,
    )
    warnings.simplefilter("error")
    for name, body in processes.bodies.items():
        shared = folder / name
        shared.mkdir(exist_ok=True)
        torch.manual_seed(20261122)
        try:
            body(shared)
            distributed.barrier()
        except BaseException:
            (shared / f"rank{rank}.txt").write_text(traceback.format_exc())
            os._exit(1)
        (shared / f"rank{rank}.txt").write_text("")
    distributed.destroy_process_group()


@functools.cache
def _has_gpus(count: int) -> bool:
    return torch.cuda.device_count() >= count


def device() -> torch.device:
    """This rank's device."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
