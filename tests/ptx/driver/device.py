"""The project's own launch on CPU tensors, with its kernels compiled for a GPU and run by the interpreter."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastlora.routes import fused
from fastlora_kernels.tables import load_table
from tests.ptx.driver.compiled import compiled
from tests.ptx.faults import Fault
from tests.ptx.machine import Machine, TensorMap
from tests.ptx.memory import Memory
from tests.ptx.parse import parse
from tests.ptx.scheduler import run

# What a pass writes and does not read before it has written it.
_RESULTS = {
    "forward_kernel": ("y", "z", "p_ptr", "scratch_ptrs"),
    "row_norms_kernel": ("n_ptr",),
    "column_sums_kernel": ("sums_ptr",),
    "group_forward_kernel": ("y0", "y1", "y2", "p_ptrs", "scratch_ptrs"),
    "group_backward_kernel": ("q_ptr", "dx", "dA_ptr", "dB_ptrs", "scratch_ptrs"),
    "hopper_forward_kernel": ("y", "p_ptr"),
    "hopper_backward_kernel": ("dx", "terms", "terms_ptr", "sums_ptr", "dA_ptr", "dB_ptr"),
    "adapter_terms_kernel": ("A_out_ptr", "B_out_ptr", "workspace_ptr"),
    "few_rows_kernel": ("y", "p_ptr", "scratch_ptrs"),
    "backward_kernel": ("q_ptr", "dx", "dA_ptr", "dB_ptr", "scratch_ptrs"),
    "masked_update_kernel": ("dx_ptr",),
    "segment_plan_kernel": ("tiles_ptr",),
    "segment_forward_kernel": ("y_ptr", "p_ptr", "scratch_ptrs"),
    "segment_backward_kernel": ("q_ptr", "dx_ptr", "dA_ptr", "dB_ptr", "scratch_ptrs"),
}
_COUNTERS = "workspace_ptr"
_DESCRIPTORS = (TensorDescriptor, GluonDescriptor)
# Register and shadow memory of so many warps is what a small machine has room for.
_RESIDENT_WARPS = 128


class Settings(NamedTuple):
    """How launches run.

    Attributes:
        architecture: The tile table's name, such as "sm_90".
        capability: The target's, such as 90.
        seed: Of the schedule; None runs warps in step.
        resident: CTAs at a time, at most; None means as many as there is room for.
        change: What is done to the PTX before it runs.
    """

    architecture: str
    capability: int
    seed: int | None = None
    resident: int | None = None
    change: Callable[[str, str], str] | None = None


@contextlib.contextmanager
def running_on(settings: Settings, module: Any = fused) -> Iterator[None]:
    """Inside, the launches of a module, such as `routes.fused`, run in the interpreter."""
    kept = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    kept["on_device"] = module.on_device
    for name, kernel in kept.items():
        setattr(module, name, Launcher(kernel, settings))
    module.on_device = lambda x: contextlib.nullcontext()
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


class Launcher:
    """Stands where the kernel stood: `kernel[grid](**arguments)`."""

    def __init__(self, kernel: Any, settings: Settings) -> None:
        self.kernel, self.settings = kernel, settings

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return functools.partial(self.launch, grid[0])

    def launch(self, grid: int, **arguments: Any) -> None:
        settings, name = self.settings, self.kernel.fn.__name__
        made, bound = compiled(self.kernel, settings.capability, arguments)
        limit = load_table(settings.architecture).shared_memory
        if made.shared > limit:
            raise Fault(f"{made.shared} bytes of shared memory where there are {limit}")
        memory = DeviceMemory(bound, _RESULTS[name])
        ptx = made.ptx if settings.change is None else settings.change(made.ptx, name)
        resident = settings.resident or max(1, _RESIDENT_WARPS // made.num_warps)
        values = memory.arguments(bound, made.signature, made.descriptors)
        machine = Machine(parse(ptx), made.num_warps, made.shared, grid, values, memory.memory, resident)
        run(machine, settings.seed)
        memory.take_back()


class DeviceMemory:
    """The tensors of a launch in global memory, apart from each other, with nothing else valid."""

    def __init__(self, bound: dict[str, Any], results: tuple[str, ...]) -> None:
        by_name = {name: list(_tensors(value)) for name, value in bound.items()}
        self.tensors = [tensor for tensors in by_name.values() for tensor in tensors]
        read = {_storage(t) for name, ts in by_name.items() if name not in results for t in ts}
        self.results = {_storage(t) for name in results for t in by_name.get(name, ())} - read
        self.counters = {_storage(tensor) for tensor in by_name.get(_COUNTERS, ())}
        sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in self.tensors}
        self.start, end = {}, 256
        for storage, size in sizes.items():
            self.start[storage] = end
            end = (end + size + 511) // 256 * 256
        self.memory = Memory(end, "global")
        for tensor in self.tensors:
            self._give(tensor)
        self.before = self.memory.data.copy()

    def _give(self, tensor: Tensor) -> None:
        """What the tensor addresses is valid, and written unless it is a result."""
        first = self.address(tensor) // 2
        index = np.array([0], np.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            index = (index[:, None] + np.arange(size) * stride * tensor.element_size() // 2).ravel()
        halves = (first + index[:, None] + np.arange(max(tensor.element_size() // 2, 1))).ravel()
        self.memory.valid[halves] = True
        if _storage(tensor) not in self.results:
            self.memory.written[halves] = True
            start = self.start[_storage(tensor)]
            raw = _raw(tensor)
            self.memory.data[start : start + len(raw)] = raw

    def address(self, tensor: Tensor) -> int:
        """Where its first element lies."""
        return self.start[_storage(tensor)] + tensor.storage_offset() * tensor.element_size()

    def arguments(self, bound: dict[str, Any], signature: dict[str, Any], maps: list[dict]) -> list[Any]:
        """The kernel's parameters in PTX: constants are left out, tuples and descriptors spread out."""
        maps, values = list(maps), []

        def add(value: Any, kind: Any) -> None:
            if kind == "constexpr":
                return
            if isinstance(value, _DESCRIPTORS):
                values.extend(self._descriptor(value, maps.pop(0)))
            elif isinstance(value, tuple):
                for inner, inner_kind in zip(value, kind, strict=True):
                    add(inner, inner_kind)
            else:
                values.append(self.address(value) if isinstance(value, Tensor) else value)

        for name, value in bound.items():
            add(value, signature[name])
        # Two pointers of Triton's own, to scratch that these kernels do not use.
        return [*values, 0, 0]

    def _descriptor(self, value: TensorDescriptor, made: dict[str, Any]) -> list[Any]:
        """A tensor map, held to the rules of cuTensorMapEncodeTiled, and the shape and strides beside it."""
        tensor, (rows, columns), (pitch, one) = value.base, value.shape, value.strides
        size, box = tensor.element_size(), tuple(made["block_size"])
        if self.address(tensor) % 16 or pitch * size % 16 or one != 1:
            raise Fault("a tensor descriptor's rows do not start on 16 bytes")
        if size != made["elem_size"] or max(box) > 256 or box[1] * size % 16:
            raise Fault(f"a tensor descriptor's box {box} of {size} bytes is not allowed")
        map_ = TensorMap(self.address(tensor), rows, columns, pitch * size, size, box, made["swizzle"])
        return [map_, rows, columns, pitch, one]

    def take_back(self) -> None:
        """Results go to the tensors, those that nobody wrote as NaN; nothing else may have changed."""
        memory = self.memory
        for tensor in self.tensors:
            storage, raw = _storage(tensor), _raw(tensor)
            part = slice(self.start[storage], self.start[storage] + len(raw))
            if storage in self.results:
                written = memory.written.repeat(2)[part]
                raw[:] = np.where(written, memory.data[part], 0xFF)
            elif storage not in self.counters and (memory.data[part] != self.before[part]).any():
                raise Fault("an operand was written")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, _DESCRIPTORS):
        yield value.base
    elif isinstance(value, tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Tensor):
        yield value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _raw(tensor: Tensor) -> np.ndarray:
    """All bytes of the storage, shared with it."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
