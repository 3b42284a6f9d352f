"""The floor of a case at measured ceilings."""

import pytest
import torch

from bench.cases import Case
from bench.ceilings import Ceilings
from bench.floor import case_floor
from fastlora.cost import Problem

CASE = Case(6, 8, 10, 4, torch.float16, torch.float32)


def ceilings(flops, moved):
    return Ceilings(flops, "float16", 1, moved, 1)


def test_the_floor_is_the_longer_of_arithmetic_and_bytes():
    assert case_floor(CASE, "forward", ceilings(1e6, 1e30)).us == Problem(*CASE[:6]).forward().flops
    assert case_floor(CASE, "forward", ceilings(1e30, 1e6)).us == Problem(*CASE[:6]).forward().moved


def test_forward_and_backward_add_up():
    there, back, both = (
        case_floor(CASE, phase, ceilings(1e6, 1e30)) for phase in ("forward", "backward", "forward+backward")
    )
    assert back.us == back.flops == Problem(*CASE[:6]).backward().flops
    assert both == tuple(one + other for one, other in zip(there, back, strict=True))


def test_an_unknown_phase_is_an_error():
    with pytest.raises(ValueError, match=r"phase must be one of forward, .*'sideways'"):
        case_floor(CASE, "sideways", ceilings(1.0, 1.0))
