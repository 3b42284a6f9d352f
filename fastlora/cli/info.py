"""What `fastlora info` prints. It needs nothing but torch."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from fastlora.accounting.explain import explain_problem
from fastlora.accounting.explanation import Explanation
from fastlora.arguments import adapter_dtype_over, check_dtype
from fastlora.formula.cost import Problem
from fastlora.info import collect_info

DTYPES = ("float16", "bfloat16", "float32", "float64")


class InfoOptionError(ValueError):
    """An option is wrong, or needs another one."""


def answer(
    *,
    as_json: bool = False,
    shape: str | None = None,
    dtype: str | None = None,
    adapter_dtype: str | None = None,
    gpu: str | None = None,
) -> str:
    """The text that is printed.

    Args:
        as_json: Whether the text is JSON.
        shape: M,K,N,r of a layer and batch to explain; None shows versions, devices and paths instead.
        dtype: With `shape`, the name of the dtype of x and W; None means bfloat16.
        adapter_dtype: With `shape`, the dtype of A and B; None means x's, but fp32 if that has 16 bits.
        gpu: With `shape`, a GPU to explain for instead of this machine's.

    Raises:
        BackendError: If the backend is set to one that cannot run here.
        InfoOptionError: If an option is wrong.
    """
    if shape is not None:
        explained = _explain(shape, dtype or "bfloat16", adapter_dtype, gpu)
        return json.dumps(explained.as_dict(), indent=2) if as_json else str(explained)
    for name, value in (("--gpu", gpu), ("--dtype", dtype), ("--adapter-dtype", adapter_dtype)):
        if value is not None:
            raise InfoOptionError(f"{name} goes with --shape M,K,N,r")
    found = collect_info()
    return json.dumps(asdict(found), indent=2) if as_json else str(found)


def _explain(shape: str, dtype: str, adapter_dtype: str | None, gpu: str | None) -> Explanation:
    sizes = [size.strip() for size in shape.split(",")]
    # At most 12 digits: longer numbers are typing errors, and what the kernels count must fit an int64.
    if len(sizes) != 4 or not all(size.isascii() and size.isdecimal() and len(size) <= 12 for size in sizes):
        raise InfoOptionError(
            f"--shape must be four whole numbers M,K,N,r; got {shape[:100]!r} (each must be below 10^12)"
        )
    M, K, N, r = map(int, sizes)
    try:
        base, chosen = getattr(torch, dtype), check_dtype("--adapter-dtype", adapter_dtype)
        return explain_problem(Problem(M, K, N, r, base, adapter_dtype_over(base, chosen)), gpu=gpu)
    except (TypeError, ValueError) as error:
        raise InfoOptionError(str(error)) from error
