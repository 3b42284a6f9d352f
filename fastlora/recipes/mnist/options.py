"""The options of the MNIST job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import torch

from fastlora.recipes.digits import CLASSES
from fastlora.recipes.mlp import HIGHEST_RANK
from fastlora.recipes.mnist.methods import METHODS
from fastlora.recipes.options import AUTO, LoRAOptions, check_count

DTYPES: Final = (torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class MnistOptions(LoRAOptions):
    """Options of the MNIST job, in addition to those of `LoRAOptions`.

    Attributes:
        data: Folder of the full set's IDX files; None means the digits that come with the package.
        download: Whether torchvision downloads the full set, into `data` or else `out`/data.
        digit: The digit to fine-tune on, or "auto" for the one that the base most often gets wrong.
        epochs: Passes over the training digits; None means 5 for the shipped digits, 1 for the full set.
        batches: The number of batches of 10 to fine-tune for.
        method: "fused", "reference", "parametrize" or "full".
        seed: The seed for the initial weights, A, and the order of the digits.
        dtype: torch.float32 or torch.float64.
    """

    HIGHEST_RANK: ClassVar[int] = HIGHEST_RANK
    USES: ClassVar[tuple[str, ...]] = ("train", "A", "finetune")

    data: Path | None = None
    download: bool = False
    digit: int | str = 9
    rank: int = 1
    alpha: float = 1.0
    epochs: int | None = None
    batches: int = 100
    method: str = "fused"
    seed: int = 0
    device: str = AUTO
    dtype: torch.dtype = torch.float32
    out: Path = Path("mnist-out")

    def _check_own(self) -> None:
        if self.digit not in (AUTO, *range(CLASSES)) or isinstance(self.digit, bool):
            raise ValueError(f"digit must be 0 to {CLASSES - 1} or {AUTO!r}; got {self.digit!r}")
        if self.epochs is not None:
            check_count("epochs", self.epochs, 1)
        check_count("batches", self.batches, 1)
        check_count("seed", self.seed, 0)
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {self.dtype!r}")
