"""In which dtype A and B are made where nobody says so."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    ReferenceLoRALinear,
    add_adapter,
    apply_lora,
    load_pretrained,
    save_pretrained,
    set_adapter,
)
from tests.models import adapted, mlp

# Base, and what A and B then are: PEFT's choice.
CHOSEN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def dtypes(layer):
    return {layer.lora_A.dtype, layer.lora_B.dtype}


@pytest.mark.parametrize(("base", "wanted"), CHOSEN.items(), ids=str)
def test_every_way_to_make_an_adapter_chooses_alike(base, wanted):
    assert dtypes(FusedLoRALinear(4, 3, r=2, dtype=base)) == {wanted}
    assert dtypes(ReferenceLoRALinear(4, 3, r=2, dtype=base)) == {wanted}
    assert dtypes(FusedLoRALinear.from_linear(nn.Linear(4, 3, dtype=base))) == {wanted}
    model = apply_lora(mlp().to(base), LoRAConfig(target_modules=["0"]))
    add_adapter(model, "fr", LoRAConfig())
    assert dtypes(model[0]) == {wanted}
    set_adapter(model, "fr")
    assert dtypes(model[0]) == dtypes(model[2]) == {wanted}
    set_adapter(model, "default")  # which has no part in "2"
    assert dtypes(model[2].adapters["fr"]) == {wanted}


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_a_dtype_may_be_given_by_its_name(name):
    assert LoRAConfig(adapter_dtype=name) == LoRAConfig(adapter_dtype=torch.bfloat16)
    assert dtypes(FusedLoRALinear(4, 3, adapter_dtype=name)) == {torch.bfloat16}
    model = apply_lora(mlp(), LoRAConfig(adapter_dtype=name))
    assert dtypes(model[0]) == {torch.bfloat16}


def test_a_file_keeps_its_fp32_values_over_a_16_bit_base(tmp_path):
    base = mlp()
    model = adapted(copy.deepcopy(base))
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(base.bfloat16(), tmp_path)
    assert torch.equal(loaded[0].lora_A, model[0].lora_A)
    assert torch.equal(loaded[2].lora_B, model[2].lora_B)


def test_a_16_bit_file_is_trained_on_in_fp32(tmp_path):
    base = mlp().bfloat16()
    model = adapted(copy.deepcopy(base), adapter_dtype=torch.bfloat16)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(base, tmp_path)
    assert dtypes(loaded[0]) == {torch.float32}
    assert torch.equal(loaded[0].lora_A, model[0].lora_A.float())


def test_small_steps_move_an_update_over_a_16_bit_base():
    torch.manual_seed(0)
    layer = FusedLoRALinear(64, 32, r=8, dtype=torch.bfloat16)
    nn.init.normal_(layer.lora_B)
    before = layer.lora_A.clone()
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=1e-5, weight_decay=0.0)
    layer(torch.randn(16, 64, dtype=torch.bfloat16)).float().square().sum().backward()
    optimizer.step()
    assert (layer.lora_A != before).all()
