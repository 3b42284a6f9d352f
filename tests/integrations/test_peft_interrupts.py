"""Ctrl-C while PEFT's layers are swapped leaves all of them swapped, or none."""

import pytest
from peft.tuners.lora import Linear

from fastlora.integrations.peft import FastLinear, accelerate_peft, undo
from tests.integrations.peft_models import lora_layers, peft_model
from tests.interrupts import by_signal, interrupted, lines_of, some


def kinds(model):
    return {type(layer) for layer in lora_layers(model)}


def swapped():
    model = peft_model()
    accelerate_peft(model)
    return model


@pytest.mark.parametrize(
    ("make", "change", "kind"), [(peft_model, accelerate_peft, FastLinear), (swapped, undo, Linear)]
)
def test_a_signal_leaves_every_layer_swapped_or_none(make, change, kind):
    for at in some(lines_of(make, change), change.__name__):
        model = make()
        interrupted(change, model, at, by_signal)
        assert len(kinds(model)) == 1
        change(model)
        assert kinds(model) == {kind}
