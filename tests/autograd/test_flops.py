"""The formulas against what torch counts of the same products written out."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastlora import flop_formulas, lora_linear
from fastlora.formula.oracle import unfused
from fastlora.measuring.inputs import random_inputs


@pytest.mark.parametrize("needed", [n for n in itertools.product((True, False), repeat=3) if any(n)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_counts_as_its_products_written_out(needed, dropout):
    o = random_inputs(6, 8, 10, 4)
    counts = []
    for function in (lora_linear, unfused):
        x, A, B = (t.clone().requires_grad_(need) for t, need in zip((o.x, o.A, o.B), needed, strict=True))
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            y = function(x, o.W, o.b, A, B, o.s, dropout=dropout)
            forward = counter.get_total_flops()
            y.backward(o.dy)
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert torch.any(y != 0)
