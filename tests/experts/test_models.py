"""LoRA on the experts of Transformers' mixtures, against PEFT over the same weights."""

import copy

import pytest
import torch

from fastlora import LoRAConfig, apply_lora, lora_disabled, lora_layers, merge_lora, unmerge_lora
from fastlora.measuring.errors import assert_within_budget
from tests.experts.mixtures import ADAPTED, adapted, inputs_of, pair, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

MODELS = [
    pytest.param(name, marks=[] if name in ("Qwen3Moe", "GptOss") else pytest.mark.exhaustive)
    for name in ADAPTED
]


def outcome(model, inputs):
    """Logits, loss and all gradients of A and of B; B's in one order, whatever its layout."""
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    found = {"logits": out.logits.detach(), "loss": out.loss.detach()}
    for letter in "AB":
        found["d" + letter] = gradients(model, letter)
    return found


def gradients(model, letter):
    theirs = [m for m in model.modules() if hasattr(m, "parameter_name")]
    if not theirs:
        layers = [layer for _, layer in lora_layers(model)]
        return torch.cat([getattr(layer, f"lora_{letter}").grad.flatten() for layer in layers])
    found = {}
    for wrapper in theirs:
        E, grad = wrapper.num_experts, getattr(wrapper, f"lora_{letter}")["default"].weight.grad
        grad = grad if letter == "A" else grad.view(grad.shape[0], -1, E).permute(2, 0, 1)
        found.setdefault(id(wrapper.get_base_layer()), []).append(grad.flatten())
    # A wrapper of the last parameter is outermost.
    return torch.cat([each for wrapped in found.values() for each in reversed(wrapped)])


@pytest.mark.parametrize("name", MODELS)
def test_experts_match_peft_in_outputs_and_gradients(name):
    model, theirs = pair(name)
    inputs = inputs_of(model)
    # A deep model amplifies roundings, so fp64 is held to PEFT's fp64.
    rounded = outcome(theirs, inputs)
    theirs.base_model.model.set_experts_implementation("eager")  # torch's grouped_mm knows no fp64
    ours, truth = outcome(model.double(), inputs), outcome(theirs.double(), inputs)
    for what in truth:
        assert_within_budget(what, ours[what], rounded[what], truth[what])
        assert truth[what].abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_switched_off_it_is_the_model_bit_for_bit_merged_or_not(name):
    model = tiny(name)
    inputs, base = inputs_of(model), copy.deepcopy(model)
    want = base(**inputs).logits
    adapted(model)
    first = model(**inputs).logits
    assert not torch.equal(first, want)
    with lora_disabled(model):
        assert torch.equal(model(**inputs).logits, want)
    merge_lora(model)
    with lora_disabled(model):
        assert torch.equal(model(**inputs).logits, want)
    unmerge_lora(model)
    assert torch.equal(model(**inputs).logits, first)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], weight) for name, weight in base.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_all_linear_reaches_experts_and_freezes_the_router(name):
    model = tiny(name)
    apply_lora(model, LoRAConfig(r=2))
    found = {layer.rpartition(".")[2] for layer, _ in lora_layers(model)}
    assert {"gate_up_proj", "down_proj", "o_proj"} <= found
    assert all("lora_" in parameter for parameter, p in model.named_parameters() if p.requires_grad)


def test_llama_4_whose_experts_take_no_hook_is_refused_by_name():
    model = tiny("Llama4")
    with pytest.raises(TypeError, match=r"Llama4TextExperts, whose experts are 3-D parameters"):
        apply_lora(model, LoRAConfig())
    with pytest.raises(TypeError, match=r"'down_proj' is 'model\.layers\.0\.feed_forward.*of a Llama4Text"):
        apply_lora(model, LoRAConfig(target_parameters=["down_proj"]))
    assert not list(lora_layers(model))
