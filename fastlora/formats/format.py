"""What a packed format of W has to say: which modules hold it, its tensors, and how they become W again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlora.formula.operands import BaseWeight


class Format(ABC):
    """One packed format of W [N, K].

    Attributes:
        name: In `BaseWeight.format`, in operators and in reports.
        about: The library and its format, as words to show.
        library: The package that makes such layers; only models that hold one need it.
        parameter: The layer's parameter that holds the packed values.
        keeps_dtype: Whether a layer remembers the dtype of the W that was packed; if not, `values_dtype`
            guesses.
    """

    name: str
    about: str
    library: str
    parameter: str = "weight"
    keeps_dtype: bool = True

    @abstractmethod
    def holds(self, module: nn.Module) -> bool:
        """Whether a module is a linear layer in this format, told without importing the library."""

    @abstractmethod
    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """The module's W, whose values are to have `dtype`; no tensor is copied.

        Raises:
            ValueError: If the module's tensors do not hold W in this format now.
        """

    @abstractmethod
    def values_dtype(self, module: Any) -> torch.dtype:
        """The dtype that W had before it was packed, or that the library unpacks it to by itself."""

    def compute_dtype(self, module: Any, x: torch.dtype, autocast: torch.dtype | None) -> torch.dtype:
        """The dtype in which the library's layer multiplies an x; `autocast` is None where it is off."""
        return autocast or x

    @abstractmethod
    def dequantize(self, base: BaseWeight) -> Tensor:
        """A new W [N, K] in `base.dtype`, bit for bit the library's."""

    @abstractmethod
    def launch(self, base: BaseWeight, out: Tensor) -> None:
        """As `dequantize`, by one Triton kernel, into a contiguous `out` [N, K]."""

    def as_operand(self, base: BaseWeight, columns: int) -> dict[str, Any] | None:
        """What the kernel of few rows reads W by, in tiles of so many columns; None if it cannot.

        That is `W`, a tuple of pointers, and the constants `KIND`, `BLOCK`, `BLOCK2`, `BY_ROW` and `factor`.
        """
        return None

    @abstractmethod
    def packed_bytes(self, N: int, K: int) -> int:
        """Bytes that W [N, K] takes with the library's default options."""


def class_name(module: object) -> tuple[str, str]:
    """The package and the name of a module's class."""
    cls = type(module)
    return cls.__module__.partition(".")[0], cls.__name__


def shape_of(module: Any) -> tuple[int, int]:
    """[N, K] as the layer declares it; a packed weight's own shape says something else."""
    return module.out_features, module.in_features


def check_whole(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError, naming the tensor, if one of these is spread over processes or has no values."""
    for name, tensor in tensors.items():
        if type(tensor).__name__ == "DTensor":
            raise ValueError(
                f"{name} of {what} must be whole; it is spread over processes, whose shards of packed values "
                "cannot be unpacked (leave quantized layers out of fully_shard, or use DDP)"
            )
        if tensor.device != next(iter(tensors.values())).device:
            raise ValueError(
                f"{name} of {what} must be on the packed weight's device; it is on {tensor.device}"
            )
