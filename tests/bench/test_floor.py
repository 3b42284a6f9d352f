"""The floor of a case at measured ceilings."""

import pytest
import torch

from bench.cases import Case
from bench.ceilings import Ceilings
from bench.floor import floor_us
from fastlora.cost import Problem

CASE = Case(6, 8, 10, 4, torch.float16, torch.float32)


def ceilings(flops, moved):
    return Ceilings(flops, "float16", 1, moved, 1)


def test_the_floor_is_the_longer_of_arithmetic_and_bytes():
    assert floor_us(CASE, "forward", ceilings(1e6, 1e30)) == Problem(*CASE[:6]).forward().flops
    assert floor_us(CASE, "forward", ceilings(1e30, 1e6)) == Problem(*CASE[:6]).forward().moved


def test_forward_and_backward_add_up():
    there, both = (floor_us(CASE, phase, ceilings(1e6, 1e30)) for phase in ("forward", "forward+backward"))
    back = floor_us(CASE, "backward", ceilings(1e6, 1e30))
    assert back == Problem(*CASE[:6]).backward().flops
    assert both == there + back


def test_an_unknown_phase_is_an_error():
    with pytest.raises(ValueError, match=r"phase must be one of forward, .*'sideways'"):
        floor_us(CASE, "sideways", ceilings(1.0, 1.0))
