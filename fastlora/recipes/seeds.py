"""What a job's seed determines: a net's first weights, and a generator for each use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def weights_drawn_from(seed: int) -> Iterator[None]:
    """Layers made on a CPU in this `with` block begin at the seed's weights; torch's generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def generator_for(uses: Sequence[str], seed: int, use: str) -> torch.Generator:
    """A CPU generator for one of the uses, so that none depends on how much another draws."""
    return torch.Generator().manual_seed(seed * len(uses) + uses.index(use))
