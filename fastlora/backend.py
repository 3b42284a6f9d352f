"""Which code computes the formula: the Triton kernels or plain torch.

The switch is one process-wide setting, from FASTLORA_BACKEND or `set_backend`:

    auto     the kernels on a GPU that can run them, torch elsewhere
    triton   the kernels; on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), else an error
    torch    plain torch everywhere
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import TracebackType
from typing import Final, NamedTuple

import torch

from fastlora.arguments import check_choice

BACKENDS: Final = ("auto", "triton", "torch")
KERNEL_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)

# bf16 matrix units came with compute capability 8.0; the tile table starts there.
_OLDEST_CUDA: Final = (8, 0)


class BackendError(RuntimeError):
    """The backend asked for cannot run on the tensors given."""


class Path(NamedTuple):
    """The code that a device and dtype take.

    Attributes:
        name: "triton", "interpreter" or "torch".
        why: The reason, as a phrase for people.
    """

    name: str
    why: str


class set_backend:  # noqa: N801 - called like a function, as torch.set_grad_enabled is
    """Choose the code path, from now on or for a `with` block.

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
        """The setting already holds; the block only bounds it."""

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
    """The setting that a forward pass with dropout takes, and its backward pass after it.

    A checkpoint runs its forward again inside the backward pass, when another setting may hold, and must draw
    the same mask: so a forward inside a backward pass takes the setting of the last one outside.
    """
    global _backend_of_mask
    setting = get_backend()
    if torch.compiler.is_compiling():
        return setting
    if torch._C._current_graph_task_id() == -1:
        _backend_of_mask = setting
    return _backend_of_mask or setting


_backend_of_mask: str | None = None


def choose_path(
    device: torch.device, dtype: torch.dtype, setting: str | None = None, *, gpu: str | None = None
) -> Path:
    """The code that tensors of this device and dtype take, and why.

    Args:
        device: Device of x.
        dtype: Dtype of x.
        setting: "auto", "triton" or "torch"; None means the one in force.
        gpu: Name of a GPU that can run the kernels, to tell of it instead of the device.

    Raises:
        ValueError: If the setting is none of these.
        BackendError: If the setting is "triton" and the kernels cannot run there.
    """
    setting = get_backend() if setting is None else check_choice("backend", setting, BACKENDS)
    if setting == "torch":
        return Path("torch", "the backend is set to torch")
    if gpu is not None:
        path = Path("triton", f"as on an {gpu}") if dtype in KERNEL_DTYPES else _no_kernel_for(dtype)
    else:
        path = _kernel_path(device.type, device.index, dtype, os.environ.get("TRITON_INTERPRET") == "1")
    if setting == "triton":
        if path.name == "torch":
            raise BackendError(f"backend 'triton' cannot run {dtype} tensors on {gpu or device}: {path.why}")
        return path
    if path.name == "interpreter":
        return Path("torch", "on a CPU torch is faster than Triton's interpreter")
    return path


@functools.lru_cache(maxsize=256)
def _kernel_path(device: str, index: int | None, dtype: torch.dtype, interpret: bool) -> Path:
    if importlib.util.find_spec("triton") is None:
        return Path("torch", "triton is not installed")
    if dtype not in KERNEL_DTYPES:
        return _no_kernel_for(dtype)
    if device == "cuda":
        return _gpu_path(index)
    if device != "cpu":
        return Path("torch", f"the kernels run on CUDA and ROCm devices, not on {device!r}")
    if not interpret:
        return Path("torch", "a CPU runs the kernels only in Triton's interpreter (TRITON_INTERPRET=1)")
    if dtype == torch.bfloat16:
        return Path("torch", "Triton's interpreter multiplies bf16 wrongly; use fp16 or fp32 there")
    return Path("interpreter", "CPU tensors with TRITON_INTERPRET=1")


def _no_kernel_for(dtype: torch.dtype) -> Path:
    return Path("torch", f"the kernels take fp16, bf16 and fp32, not {dtype}")


def _gpu_path(index: int | None) -> Path:
    name = torch.cuda.get_device_name(index)
    if torch.version.hip is not None:
        return Path("triton", f"{name} is a ROCm device")
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CUDA:
        return Path("torch", f"{name} has compute capability {capability}, the kernels need 8.0")
    return Path("triton", f"{name} has compute capability {capability}")
