"""FLOPs and bytes, against torch's own count and a count by hand."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastlora.formula.cost import Cost, Problem
from fastlora.formula.oracle import unfused
from fastlora.measuring.inputs import random_inputs

PROBLEM = Problem(6, 8, 10, 4, torch.float16, torch.float32)


def test_flops_are_those_that_torch_counts():
    o = random_inputs(*PROBLEM[:4], bias=False)
    x, A, B = (tensor.requires_grad_() for tensor in (o.x, o.A, o.B))
    with FlopCounterMode(display=False) as forward:
        y = unfused(x, o.W, None, A, B, o.s)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y, (x, A, B), o.dy)
    assert PROBLEM.forward().flops == forward.get_total_flops()
    assert PROBLEM.backward().flops == backward.get_total_flops()


def test_bytes_are_each_input_and_output_once():
    x, W, y, A, B, p = 2 * 6 * 8, 2 * 10 * 8, 2 * 6 * 10, 4 * 4 * 8, 4 * 10 * 4, 4 * 6 * 4
    assert PROBLEM.forward().moved == x + W + A + B + y + p
    dy, dx, dA, dB = y, x, A, B
    assert PROBLEM.backward().moved == dy + x + W + A + B + p + dx + dA + dB


def test_the_floor_is_the_longer_of_arithmetic_and_bytes():
    assert Cost(flops=6, moved=5).floor_us(2, 1) == 5e6
    assert Cost(flops=6, moved=5).floor_us(1, 2) == 6e6
