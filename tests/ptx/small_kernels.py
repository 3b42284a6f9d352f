"""Kernels of a few lines for the interpreter's own tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.ptx.machine import Machine, TensorMap
from tests.ptx.memory import Memory
from tests.ptx.parse import parse
from tests.ptx.scheduler import run

_FRAME = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
	.reg .pred 	%p<20>;
	.reg .b16 	%rs<20>;
	.reg .b32 	%r<200>;
	.reg .b64 	%rd<40>;
	mov.u32 	%r0, %tid.x;
	mov.u32 	%r1, %ctaid.x;
{pointers}
{body}
	ret;
                                        // -- End function
}}
"""


class New(NamedTuple):
    """Memory that nobody has written."""

    array: np.ndarray


class Matrix(NamedTuple):
    """A tensor map of a [rows, columns] array, in boxes."""

    array: np.ndarray
    box: tuple[int, int]
    swizzle: int = 0
    pitch: int = 0


def run_kernel(
    body: str,
    *arguments: Any,
    num_warps: int = 1,
    grid: int = 1,
    shared: int = 4096,
    seed: int | None = None,
    resident: int = 64,
) -> list[np.ndarray]:
    """Run a body and return the arrays as it leaves them.

    %r0 is the thread, %r1 the CTA, %rd0, %rd1, ... the addresses of the arguments: arrays, New ones, or
    Matrix.
    """
    arrays = [one if isinstance(one, np.ndarray) else one.array for one in arguments]
    memory = Memory(sum(array.nbytes + 512 for array in arrays) + 512, "global")
    values, starts, end, lines, declared = [], [], 256, [], []
    for number, (one, array) in enumerate(zip(arguments, arrays, strict=True)):
        raw = np.ascontiguousarray(array).view(np.uint8).ravel()
        memory.data[end : end + raw.size] = raw
        memory.valid[end // 2 : (end + raw.size) // 2] = True
        memory.written[end // 2 : (end + raw.size) // 2] = not isinstance(one, New)
        starts.append(end)
        if isinstance(one, Matrix):
            declared.append(f"\t.param .align 64 .b8 kernel_param_{number}[128]")
            lines += [f"\tmov.b64 \t%rd{number}, kernel_param_{number};"]
            pitch = one.pitch or array.shape[1] * array.itemsize
            values.append(TensorMap(end, *array.shape, pitch, array.itemsize, one.box, one.swizzle))
        else:
            declared.append(f"\t.param .u64 kernel_param_{number}")
            lines += [f"\tld.param.b64 \t%rd{number}, [kernel_param_{number}];"]
            values.append(end)
        end = (end + raw.size + 511) // 256 * 256
    ptx = _FRAME.format(
        parameters=",\n".join(declared), threads=32 * num_warps, pointers="\n".join(lines), body=body
    )
    run(Machine(parse(ptx), num_warps, shared, grid, values, memory, resident), seed)
    return [
        memory.data[start : start + array.nbytes].view(array.dtype).reshape(array.shape).copy()
        for start, array in zip(starts, arrays, strict=True)
    ]


_KINDS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}


def apply(line: str, *inputs: Any, out: Any = np.uint32) -> np.ndarray:
    """One instruction on lanes: d from a, b and c, each a short array that repeats."""
    names = "abc"[: len(inputs)]
    arrays = [np.resize(np.asarray(one), 32) for one in inputs]
    result = np.zeros(32, out)
    body = [f".reg .{_KINDS[result.itemsize]} d;"]
    for number, (name, array) in enumerate(zip(names, arrays, strict=True)):
        kind = _KINDS[array.itemsize]
        body += [
            f".reg .{kind} {name};",
            f"mad.wide.u32 %rd20, %r0, {array.itemsize}, %rd{number};",
            f"ld.global.{kind} {name}, [%rd20];",
        ]
    body += [
        "mov.pred %p1, 0;",
        line,
        f"mad.wide.u32 %rd20, %r0, {result.itemsize}, %rd{len(arrays)};",
        f"st.global.{_KINDS[result.itemsize]} [%rd20], d;",
    ]
    found = run_kernel("\n".join(body), *arrays, New(result))[-1]
    return found[: max((np.size(one) for one in inputs), default=32)]
