"""What the MNIST job can be asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from fastlora.arguments import check_alpha, check_rank
from fastlora.recipes.digits import CLASSES
from fastlora.recipes.methods import METHODS
from fastlora.recipes.mlp import HIGHEST_RANK

AUTO: Final = "auto"
DTYPES: Final = (torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class MnistOptions:
    """Options of the MNIST job; each is checked when this is made.

    Attributes:
        data: Folder of the full set's IDX files; None means the digits that come with the package.
        download: Whether torchvision fetches the full set, into `data` or else `out`/data.
        digit: The digit to fine-tune on, or "auto" for the one that the base gets wrong most.
        rank: Of the update, r.
        alpha: The update is scaled by alpha / r.
        epochs: Passes over the training digits; None means 5 for the shipped digits, 1 for the full set.
        batches: Batches of 10 to fine-tune for.
        method: "fused", "reference", "parametrize" or "full".
        seed: Of the initial weights, A, and the order of the digits.
        device: Such as "cpu" or "cuda"; "auto" is the GPU where there is one.
        dtype: torch.float32 or torch.float64.
        out: Folder that the results are written to; made if need be.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

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

    def __post_init__(self) -> None:
        check_layer_rank(self.rank, HIGHEST_RANK)
        if check_alpha(self.alpha) in (None, 0.0):
            raise ValueError(f"alpha must be a finite number other than 0; got {self.alpha!r}")
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
        self.torch_device()

    def torch_device(self) -> torch.device:
        """The device meant; ValueError if torch cannot use it."""
        return find_device(self.device)


def find_device(name: str) -> torch.device:
    """The device called so, "auto" being the GPU where there is one; ValueError if torch cannot use it."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # An unknown name is a RuntimeError, a torch built without CUDA an AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use here; got {name!r}: {reason}") from error
    if device.type == "meta":
        raise ValueError("device must be one that holds data; got 'meta'")
    return device


def check_layer_rank(rank: object, highest: int) -> None:
    """Raise TypeError or ValueError unless `rank` is one that an update of the net's layers can have."""
    if check_rank(rank, "rank") > highest:
        raise ValueError(
            f"rank must be at most {highest}: no update of this net's layers has a higher one; got {rank}"
        )


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError about `name` unless it is an int of at least `least`."""
    wanted = f"{name} must be an int of at least {least}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wanted)
    # A torch.Generator takes 64 bits, of which the jobs' streams need some; and nobody counts so far.
    if not least <= value < 2**60:
        raise ValueError(wanted)
