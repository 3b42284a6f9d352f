"""PEFT's `adapter_names=`: a batch of several adapters through the fused layers."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn

from fastlora.integrations.peft import accelerate_peft, forward_counts
from fastlora.measuring.errors import assert_within_budget
from tests.integrations.peft_models import lora_layers, twins

NAMES = ["default", "fr", "__base__", "fr", "default", "de"]


def models(**options):
    """The same model stock and fused, with "fr" and, on one layer only, "de"; in eval mode."""
    both = [model.eval() for model in twins(**options)]
    for model in both:
        model.add_adapter(
            "fr", LoraConfig(r=2, lora_alpha=5, target_modules=["0", "2"], init_lora_weights=False)
        )
        model.add_adapter("de", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    both[1].load_state_dict(both[0].state_dict())
    accelerate_peft(both[1])
    return both


@pytest.mark.parametrize("tokens", [(), (5,)])
def test_a_batch_of_several_adapters_is_fused(tokens):
    stock, fused = models()
    x = torch.randn(len(NAMES), *tokens, 6)
    ours, theirs = fused(x, adapter_names=NAMES), stock(x, adapter_names=NAMES)
    truth = stock.double()(x.double(), adapter_names=NAMES)
    assert_within_budget("y", ours.detach(), theirs.detach(), truth.detach())
    assert forward_counts(fused) == {"fused": 2}


def test_gradients_of_a_layer_called_so():
    grads = []
    stock, fused = models()
    x = torch.randn(len(NAMES), 6)
    for model in (stock, fused, copy.deepcopy(stock).double()):
        layer = lora_layers(model)[0]
        for name in ("default", "fr", "de"):
            layer.set_requires_grad([name])
        layer.lora_A.requires_grad_(), layer.lora_B.requires_grad_()
        y = layer(x.to(layer.base_layer.weight.dtype), adapter_names=NAMES)
        grads.append(
            torch.autograd.grad(y.square().sum(), [*layer.lora_A.parameters(), *layer.lora_B.parameters()])
        )
    for theirs, ours, truth in zip(*grads, strict=True):
        assert_within_budget("gradient", ours, theirs, truth)


def test_what_is_not_plain_takes_pefts_own_forward():
    stock, fused = models()
    x = torch.randn(len(NAMES), 6)
    for model in (stock, fused):
        for layer in lora_layers(model):
            layer.lora_A["fr"].register_forward_hook(lambda module, args, out: out * 2)
    assert torch.equal(fused(x, adapter_names=NAMES), stock(x, adapter_names=NAMES))
    assert forward_counts(fused) == {"lora_A has hooks or another forward": 2}


def test_a_batch_of_the_base_alone():
    stock, fused = models()
    x = torch.randn(2, 6)
    names = ["__base__"] * 2
    assert torch.equal(fused(x, adapter_names=names), stock(x, adapter_names=names))
    assert forward_counts(fused) == {"the layer has none of the batch's adapters": 2}


def test_pefts_errors_stay_pefts():
    stock, fused = models()
    x = torch.randn(len(NAMES), 6)
    for names, message in ((NAMES[:2], "Length of `adapter_names`"), (["it"] * 6, "non-existing adapter")):
        for model in (stock, fused):
            with pytest.raises(ValueError, match=message):
                model(x, adapter_names=names)
    for model in (stock, fused):
        model.merge_adapter()
        with pytest.raises(ValueError, match="merged adapters"):
            model(x, adapter_names=NAMES)


def test_dora_takes_pefts_own_error():
    stock, fused = models(use_dora=True)
    x = torch.randn(len(NAMES), 6)
    for model in (stock, fused):
        with pytest.raises(ValueError, match="DoRA"):
            model(x, adapter_names=NAMES)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_generation_with_beams():
    transformers = pytest.importorskip("transformers")
    from peft import get_peft_model

    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(1)
    base = transformers.LlamaForCausalLM(config)
    options = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(r=2, **options)).eval()
    model.add_adapter("fr", LoraConfig(r=4, **options))
    prompt = torch.randint(1, 40, (3, 5))
    call = {
        "adapter_names": ["fr", "__base__", "default"],
        "max_new_tokens": 6,
        "num_beams": 2,
        "pad_token_id": 0,
    }
    stock = model.generate(input_ids=prompt, **call)
    accelerate_peft(model)
    assert torch.equal(model.generate(input_ids=prompt, **call), stock)
    assert set(forward_counts(model)) == {"fused"}
    assert isinstance(model, nn.Module)
