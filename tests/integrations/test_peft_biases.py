"""Biases that PEFT trains, the base layer's and B's, beside the fused passes; what it trains elsewhere."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fastlora.integrations.peft import accelerate_peft, forward_counts
from tests.integrations.peft_models import assert_stock, mlp, run, twins

pytestmark = pytest.mark.filterwarnings("ignore:.*have invalid shape")  # PEFT's own, about its own lora_bias
BIASES = ({"bias": "lora_only"}, {"bias": "all"}, {"lora_bias": True}, {"bias": "all", "lora_bias": True})


def moved(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.mark.parametrize("options", [*BIASES, {"bias": "all", "use_dora": True}], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.exhaustive)], ids=str
)
def test_trained_biases_are_fused_and_get_pefts_gradients(options, dtype):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False, **options)
    stock = moved(get_peft_model(mlp().to(dtype), config))
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    x = torch.randn(4, 6, dtype=dtype)
    ours, theirs = run(fused, x), run(stock, x)
    assert set(forward_counts(fused)) == {"fused"}
    assert any(name.endswith("bias") for name in ours)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_a_batch_that_mixes_adapters_with_biases_takes_pefts_own_forward():
    stock = moved(twins(lora_bias=True)[0]).eval()
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    x = torch.randn(2, 6)
    names = ["default", "__base__"]
    assert torch.equal(fused(x, adapter_names=names), stock(x, adapter_names=names))
    assert "an adapter of the batch has a bias of B" in forward_counts(fused)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning", "ignore:.*tied:UserWarning")
def test_tokens_tied_weights_and_saved_modules_train_as_pefts(options, tied):
    from tests.integrations.architectures import tiny

    def made():
        torch.manual_seed(0)
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **options})
        return get_peft_model(tiny("Llama", tie_word_embeddings=tied).double(), config)

    stock, fused = made(), made()
    assert len(accelerate_peft(fused).fused) >= 2
    ids = torch.tensor([[3, 4, 5, 6]])
    found = {}
    for name, model in (("ours", fused), ("theirs", stock)):
        model(input_ids=ids, labels=ids).loss.backward()
        found[name] = {own: p.grad for own, p in model.named_parameters() if p.grad is not None}
    assert found["ours"].keys() == found["theirs"].keys()
    for name, gradient in found["theirs"].items():
        torch.testing.assert_close(found["ours"][name], gradient)
    assert set(forward_counts(fused)) == {"fused"}


def test_a_trained_weight_takes_pefts_own_forward():
    stock, fused = twins()
    accelerate_peft(fused)
    for model in (stock, fused):
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.requires_grad_()
    x = torch.randn(4, 6)
    assert_stock(run(fused, x), run(stock, x), fused, "the base layer is trained too")
