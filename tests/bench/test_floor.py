"""FLOPs and bytes of the floor, against torch's own count and a count by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case
from bench.ceilings import Ceilings
from bench.floor import backward_bytes, backward_flops, floor_us, forward_bytes, forward_flops
from bench.methods import UNFUSED

CASE = Case(6, 8, 10, 4, torch.float16, torch.float32)


def ceilings(flops, moved):
    return Ceilings(flops, "float16", 1, moved, 1)


def test_flops_are_those_that_torch_counts():
    ops = CASE._replace(dtype=torch.float32).operands(torch.device("cpu"))
    layer = UNFUSED.build(ops)
    with FlopCounterMode(display=False) as forward:
        y = layer.apply(ops.x)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y, (ops.x, *layer.trained), ops.dy)
    assert forward_flops(CASE) == forward.get_total_flops()
    assert backward_flops(CASE) == backward.get_total_flops()


def test_bytes_are_each_input_and_output_once():
    x, W, y, A, B, p = 2 * 6 * 8, 2 * 10 * 8, 2 * 6 * 10, 4 * 4 * 8, 4 * 10 * 4, 4 * 6 * 4
    assert forward_bytes(CASE) == x + W + A + B + y + p
    dy, dx, dA, dB = y, x, A, B
    assert backward_bytes(CASE) == dy + x + W + A + B + p + dx + dA + dB


def test_the_floor_is_the_longer_of_arithmetic_and_bytes():
    assert floor_us(CASE, "forward", ceilings(1e6, 1e30)) == forward_flops(CASE)
    assert floor_us(CASE, "forward", ceilings(1e30, 1e6)) == forward_bytes(CASE)


def test_forward_and_backward_add_up():
    there, both = (floor_us(CASE, phase, ceilings(1e6, 1e30)) for phase in ("forward", "forward+backward"))
    assert both == there + backward_flops(CASE)


def test_an_unknown_phase_is_an_error():
    with pytest.raises(ValueError, match=r"phase must be .*'sideways'"):
        floor_us(CASE, "sideways", ceilings(1.0, 1.0))
