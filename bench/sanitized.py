"""The kernels on small shapes, for a sanitizer to watch: `python -m bench.sanitized --device cuda`."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Sequence

import torch

import fastlora
from bench.methods import FASTLORA
from bench.phases import forward_backward
from bench.settings import DRY, GPU, Setting
from tests.testing import Operands


def run_cases(setting: Setting) -> None:
    """Forward and backward of each case; their numbers are for the tests.

    Operands are made on the CPU: the fewer other kernels run, the sooner the sanitizer is done.

    Raises:
        AssertionError: If a result is not finite.
    """
    torch.manual_seed(0)
    for case in setting.sanitized:
        ops = _moved(case.operands(torch.device("cpu")), setting.device)
        y, gradients = forward_backward(FASTLORA.build(ops, case.dropout), ops)
        for result in (y, *gradients):
            assert result.detach().cpu().isfinite().all(), f"{case}: a result is not finite"
        print(f"ran {case}", flush=True)  # noqa: T201


def _moved(ops: Operands, device: torch.device) -> Operands:
    moved = copy.copy(ops)
    for name, value in vars(ops).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.detach().to(device))
    moved.x.requires_grad_()
    return moved


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(prog="python -m bench.sanitized", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    device = parser.parse_args(arguments).device
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    with fastlora.set_backend("triton"):
        run_cases(GPU if device == "cuda" else DRY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
