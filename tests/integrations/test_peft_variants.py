"""Which of PEFT's variants run the fused forward: other starts and optimizers do, other functions do not."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer

from fastlora.integrations.peft import accelerate_peft, forward_counts
from tests.integrations.peft_models import assert_stock, mlp, run

STARTS = {
    "RSLoRA": {"use_rslora": True},
    **{start: {"init_lora_weights": start} for start in ("gaussian", "orthogonal", "pissa", "olora", "eva")},
}
VARIANTS = {
    "VeLoRA": ({"velora_config": {"num_groups": 1}}, "VeloraLinearVariant"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 1, "target_modules_bd_a": ["0", "2"]}}, "BdLoraLinearVariant"),
    "KaSA": ({"kasa_config": {}}, "KasaLinearVariant"),
    "MiCA": ({"init_lora_weights": "mica"}, "MiCALinearVariant"),
    "aLoRA": ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "ALoraLinearVariant"),
}


def pair(**options):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**{"r": 2, "target_modules": ["0", "2"], **options})
        config.task_type = None
        stock = get_peft_model(mlp(), config).double()
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
    return stock, copy.deepcopy(stock)


@pytest.mark.parametrize("start", STARTS)
def test_another_start_or_scaling_is_fused(start):
    stock, fused = pair(**STARTS[start])
    accelerate_peft(fused)
    x = torch.randn(4, 6, dtype=torch.float64)
    ours, theirs = run(fused, x), run(stock, x)
    assert set(forward_counts(fused)) == {"fused"}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_lora_fa_is_fused_and_trains_b_alone():
    stock, fused = pair()
    accelerate_peft(fused)
    before = {name: p.detach().clone() for name, p in fused.named_parameters()}
    x = torch.randn(4, 6, dtype=torch.float64)
    for model in (stock, fused):
        optimizer = create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=1e-2)
        model(x).square().sum().backward()
        optimizer.step()
    assert set(forward_counts(fused)) == {"fused"}
    theirs = dict(stock.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter, theirs[name])
        assert torch.equal(parameter, before[name]) == ("lora_B" not in name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_function_takes_pefts_own_forward(variant):
    options, kind = VARIANTS[variant]
    stock, fused = pair(**options)
    accelerate_peft(fused)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert_stock(run(fused, x), run(stock, x), fused, f"variant of LoRA ({kind})")
