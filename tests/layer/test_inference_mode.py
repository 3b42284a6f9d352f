"""What is made inside torch.inference_mode can be trained outside it."""

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    apply_lora,
    combine_adapters,
    load_pretrained,
    lora_layers,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    set_lora_enabled,
    unfreeze,
    unmerge_lora,
)
from tests.models import adapted, mlp
from tests.packed import linear_4bit
from tests.several_adapters import two


@pytest.mark.parametrize("change", ["apply", "load", "further", "combine"])
def test_updates_made_in_inference_mode_are_trained_outside_it(change, tmp_path):
    save_pretrained(adapted(mlp()), tmp_path)
    model = mlp() if change in ("apply", "load") else two()
    with torch.inference_mode():
        if change == "apply":
            apply_lora(model, LoRAConfig(r=2))
        elif change == "combine":
            combine_adapters(model, {"fr": 2.0}, "new")
        else:
            load_pretrained(model, tmp_path, name="default" if change == "load" else "new")
        if change in ("further", "combine"):
            set_adapter(model, "new")
        merge_lora(model)
        set_lora_enabled(model, False)
    assert model(torch.randn(2, 6, requires_grad=True)).requires_grad
    unmerge_lora(model)
    set_lora_enabled(model, True)
    model(torch.randn(2, 6)).sum().backward()
    assert all(layer.lora_B.grad is not None for _, layer in lora_layers(model))


BASES = {
    "linear": lambda: nn.Linear(4, 4),
    "convolution": lambda: nn.Conv2d(4, 4, 1),
    "embedding": lambda: nn.Embedding(4, 4),
    "packed": lambda: linear_4bit(torch.randn(32, 64)),
}


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_plain_layers_made_in_inference_mode_are_trained_outside_it(base, merge):
    model = apply_lora(nn.Sequential(BASES[base]()), LoRAConfig(r=2, target_modules=["0"]))
    with torch.inference_mode():
        made = [model[0].to_linear(merge)]
        if base != "packed":
            merge_lora(model)
            made.append(model[0].to_linear(merge))
    assert not any(each.is_inference() for plain in made for each in plain.parameters())


def test_a_bias_that_takes_up_bs_in_inference_mode_is_trained_outside_it():
    model = apply_lora(nn.Sequential(nn.Linear(4, 4, bias=False)), LoRAConfig(r=2, lora_bias=True))
    with torch.inference_mode():
        remove_lora(model, merge=True)
    unfreeze(model)
