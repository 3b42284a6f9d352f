"""The order in which programs run changes no bit, in Triton's interpreter with its programs as threads.

It runs the kernels' source, so it stands for the backends whose compiled code runs nowhere here.
"""

from collections.abc import Iterator

import pytest
import torch

from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import fused
from fastlora_kernels import backward, forward
from tests.cases import quick
from tests.routes.interleaved import interleaved

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the compiled kernels"),
]

# In the first p and y are split; in the second p and q have two tiles of ranks a row.
SHAPES = [(20, 520, 40, 4), (40, 72, 72, 40)]


def run(inputs: Inputs) -> dict[str, torch.Tensor]:
    y, p = fused.forward(inputs.call())
    dx, dA, dB = fused.backward(inputs.call(), inputs.dy, p, EVERYTHING)
    return {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}


def differing(inputs: Inputs, seeds: range) -> Iterator[int]:
    """The seeds under which a bit is another than with one program after the other."""
    usual = run(inputs)
    for seed in seeds:
        with interleaved(seed):
            results = run(inputs)
        if any(not torch.equal(results[name], usual[name]) for name in usual):
            yield seed


@pytest.mark.parametrize("shape", quick(SHAPES, SHAPES[0]), ids=str)
@pytest.mark.parametrize("seeds", quick([range(1), range(1, 12)], range(1)), ids=str)
def test_every_order_of_programs_gives_the_same_bits(shape, seeds):
    assert list(differing(random_inputs(*shape), seeds)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", [forward, backward], ids=["y", "dx and dA"])
def test_a_wait_that_is_dropped_is_seen(place, monkeypatch):
    monkeypatch.setattr(place, "wait_for", lambda flag_ptr, count: None)
    assert any(True for _ in differing(random_inputs(*SHAPES[1]), range(12)))
