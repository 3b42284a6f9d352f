"""LoRA over real architectures, against PEFT over the same weights."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import fastlora
from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, lora_layers
from fastlora.measuring.errors import assert_within_budget
from tests.integrations.architectures import ADAPTED, inputs_of, pair, tiny
from tests.models import with_update

# Transformers renames methods that PEFT, and most scripts, still call by their old names.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")


def outcome(model, inputs):
    """Logits, loss and all gradients of A and of B, each as one vector."""
    dtype = next(p.dtype for p in model.parameters())
    out = model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()})
    model.zero_grad()
    out.loss.backward()
    found = {"logits": out.logits.detach(), "loss": out.loss.detach()}
    for letter in "AB":
        gradients = [p.grad.flatten() for n, p in model.named_parameters() if f"lora_{letter}" in n]
        found["d" + letter] = torch.cat(gradients)
    return found


@pytest.mark.parametrize("name", ADAPTED)
def test_all_linear_matches_peft_in_outputs_and_gradients(name):
    model, theirs = pair(name)
    inputs = inputs_of(model)
    # A deep model amplifies roundings, each order of sums its own; so fp64 is held to PEFT's fp64, and the
    # layers alone to the budget in every dtype.
    rounded = outcome(theirs, inputs)
    ours, truth = outcome(model.double(), inputs), outcome(theirs.double(), inputs)
    for what in truth:
        assert_within_budget(what, ours[what], rounded[what], truth[what])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or n.startswith("classifier.") for n in trained)
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert set(linears) <= {"lm_head", "cls.predictions.decoder", "classifier"}


def test_experts_in_3d_parameters_are_no_modules_and_refused_as_such():
    model = tiny("Mixtral")
    kind = r"MixtralExperts, whose experts are 3-D parameters \(gate_up_proj \[4, 96, 32\].*target_parameters"
    with pytest.raises(TypeError, match=r"target 'model\.layers\.0\.mlp\.experts' must.*" + kind):
        apply_lora(model, LoRAConfig(target_modules=["experts"]))
    with pytest.raises(TypeError, match=r"'down_proj' must match a module; it is the parameter 'down_proj'"):
        apply_lora(model, LoRAConfig(target_modules=["down_proj"]))
    assert not list(lora_layers(model))


def test_a_mixture_of_experts_is_adapted_where_the_experts_are_left_out():
    model = tiny("Mixtral")
    apply_lora(model, LoRAConfig(exclude_modules=["experts"]))
    assert {name.rpartition(".")[2] for name, _ in lora_layers(model)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    model(**inputs_of(model)).loss.backward()


def test_tied_embeddings_stay_tied():
    model = tiny("Llama", tie_word_embeddings=True)
    inputs = inputs_of(model)
    before = model(**inputs).logits
    apply_lora(model, LoRAConfig(target_modules=["q_proj", "lm_head"]))
    head = model.lm_head
    assert isinstance(head, FusedLoRALinear)
    assert head.weight is model.model.embed_tokens.weight
    model.tie_weights()
    assert head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model(**inputs).logits, before)
    with_update(model)
    assert not torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_generate_gives_pefts_tokens(name):
    model, theirs = pair(name)
    prompt = torch.randint(3, 61, (2, 5))
    options = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(
        tokens, theirs.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    )
    with fastlora.lora_disabled(model):
        assert not torch.equal(
            tokens, model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        )


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_with_dropout_changes_no_bit(use_reentrant):
    model = tiny("Llama")
    with_update(apply_lora(model, LoRAConfig(r=4, dropout=0.3)))
    model.train()
    model.enable_input_require_grads()
    inputs = inputs_of(model)
    torch.manual_seed(4)
    wanted = outcome(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    torch.manual_seed(4)
    found = outcome(model, inputs)
    assert all(torch.equal(found[what], wanted[what]) for what in wanted)


def test_a_merged_model_is_saved_and_loaded_as_a_plain_one(tmp_path):
    model, _ = pair("Llama")
    inputs = inputs_of(model)
    before = model(**inputs).logits.detach()
    fastlora.remove_lora(model, merge=True)
    merged = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(**inputs).logits, merged)
    torch.testing.assert_close(merged, before)
