"""The backend setting, one for the process: FASTLORA_BACKEND or `set_backend`.

auto     the kernels on an NVIDIA GPU that can run them, torch elsewhere
triton   the kernels, on a ROCm device too; on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), else
         an error
torch    plain torch everywhere
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Final

import torch

from fastlora.arguments import check_choice

BACKENDS: Final = ("auto", "triton", "torch")


class BackendError(RuntimeError):
    """The backend that was chosen cannot run on these tensors."""


class set_backend:  # noqa: N801 - called like a function, as torch.set_grad_enabled is
    """Choose the backend, from now on or for a `with` block.

    Args:
        name: "auto", "triton" or "torch".

    Raises:
        ValueError: If `name` is none of these.

    Example:
        >>> fastlora.set_backend("torch")
        >>> with fastlora.set_backend("triton"):
        ...     y = layer(x)
    """

    def __init__(self, name: str) -> None:
        global _backend
        check_choice("backend", name, BACKENDS)
        self.previous = get_backend()
        _backend = name

    def __enter__(self) -> None:
        """Do nothing: the constructor has set the backend; leaving the block restores the previous one."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _backend
        _backend = self.previous


_backend: str | None = None


def get_backend() -> str:
    """The setting in force: "auto", "triton" or "torch".

    Raises:
        ValueError: If FASTLORA_BACKEND holds an unknown name.
    """
    global _backend
    if _backend is None:
        _backend = check_choice("FASTLORA_BACKEND", os.environ.get("FASTLORA_BACKEND", "auto"), BACKENDS)
    return _backend


def backend_of_mask() -> str:
    """The setting for a forward pass with dropout, and for its backward pass.

    Activation checkpointing runs a forward again inside the backward pass. It must draw the same mask, though
    the setting may have changed since. So a forward inside a backward pass takes the setting of the last
    forward outside one.
    """
    global _backend_of_mask
    setting = get_backend()
    if torch.compiler.is_compiling():
        return setting
    if torch._C._current_graph_task_id() == -1:
        _backend_of_mask = setting
    return _backend_of_mask or setting


_backend_of_mask: str | None = None
