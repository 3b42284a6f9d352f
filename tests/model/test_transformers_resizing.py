"""Resizing a Transformers model with LoRA: nothing that is trained is lost without a word."""

import copy

import pytest
import torch

from fastlora import LoRAConfig, add_adapter, apply_lora, lora_layers, remove_lora
from fastlora.model.transformers_resizing import NAME
from tests.integrations.architectures import tiny
from tests.models import with_update

ROWS = 61


@pytest.mark.parametrize(
    ("options", "further", "lost"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, False, "'lm_head'"),
        ({"target_modules": ["embed_tokens"]}, False, r"'model\.embed_tokens'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False, "'lm_head'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True, r"'model\.embed_tokens'"),
    ],
)
def test_what_would_be_lost_is_named_and_stays(options, further, lost):
    model = apply_lora(tiny("Llama"), LoRAConfig(r=2, **options))
    if further:
        add_adapter(model, "fr", LoRAConfig(r=1, target_modules=["q_proj"]))
    before = dict(model.named_modules())
    for change in ({"new_num_tokens": 70}, {"pad_to_multiple_of": 8}):
        with pytest.raises(ValueError, match=f"must come before apply_lora .*; {lost} would lose it"):
            copy.deepcopy(model).resize_token_embeddings(**change)
    model.resize_token_embeddings(ROWS)  # which changes nothing
    assert dict(model.named_modules()) == before


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_a_model_whose_embeddings_and_head_are_frozen_or_trained_in_place_is_resized():
    config = LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = with_update(apply_lora(tiny("Llama"), config))
    count = len(dict(lora_layers(model)))
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.model.embed_tokens.weight.requires_grad
    assert len(dict(lora_layers(model))) == count
    assert model(torch.full((1, 3), 69)).logits.shape == (1, 3, 70)
    assert NAME not in vars(remove_lora(model))
