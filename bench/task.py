"""What is trained: a net, which of its layers LoRA adapts, and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.methods.method import Method, Tuned, Update
from fastlora.arguments import dtype_name

Batch = Mapping[str, Tensor]


@contextmanager
def seeded(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make a net on the device and in the dtype, with the same weights each time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


class Outcome(NamedTuple):
    """Of one forward pass: a scalar loss, and what it was computed from."""

    loss: Tensor
    y: Tensor


class Task(NamedTuple):
    """A net and what it is trained on.

    Attributes:
        name: Of the net, in tables and results; None for a layer alone.
        build: Makes the net, the same weights each time, on the device and in the dtype of the run.
        names: Of the nn.Linear modules that LoRA adapts.
        batches: Taken in turn, step by step; what takes a gradient in them is checked for its own.
        run: The forward pass with its loss.
        plain: As `build`, with the same values in plain layers, where `build` has packed ones.
        reference: What computes the formula in separate operations, to check the methods; None for that of
            linear layers.
    """

    name: str | None
    shape: dict[str, int]
    dtype: torch.dtype
    build: Callable[[], nn.Module]
    names: Sequence[str]
    update: Update
    batches: Sequence[Batch]
    run: Callable[[nn.Module, Batch], Outcome]
    plain: Callable[[], nn.Module] | None = None
    reference: Method | None = None

    def labels(self) -> dict[str, Any]:
        """The part of a row that says what was trained."""
        return {
            "model": self.name,
            "dtype": dtype_name(self.dtype),
            "adapter_dtype": dtype_name(self.update.adapter_dtype),
            "shape": self.shape,
            "dropout": self.update.dropout,
        }


def draw_update(tuned: Tuned, dtype: torch.dtype) -> None:
    """Fill A and B from one seed with values of `dtype`, whatever they are held in; nothing else."""
    generator = torch.Generator().manual_seed(20261122)
    with torch.no_grad():
        for name, tensor in tuned.trained.items():
            if name.endswith((".A", ".B")):
                flat = as_files_do(name, tensor)
                drawn = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
                columns = flat.shape[-1] if name.endswith(".A") else flat[0].numel()
                flat.copy_((drawn / columns**0.5).to(dtype))


def as_files_do(name: str, tensor: Tensor) -> Tensor:
    """A view of A or B whose entries follow each other as in PEFT's files, also of stacks for experts."""
    return tensor.permute(1, 2, 0) if tensor.dim() == 3 and name.endswith(".B") else tensor
