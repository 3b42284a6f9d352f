"""Real architectures of Transformers with small random weights, and inputs for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fastlora import LoRAConfig, apply_lora, lora_layers
from tests.models import with_update

_LM = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_LM, "num_key_value_heads": 2}
_VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "Mistral": ("MistralForCausalLM", {**_GROUPED, "sliding_window": 4}),
    "Gemma2": ("Gemma2ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "Phi": ("PhiForCausalLM", _LM),
    "Phi3": ("Phi3ForCausalLM", _GROUPED),
    "Bert": ("BertForMaskedLM", _LM),
    "ViT": ("ViTForImageClassification", {**_VIT, "image_size": 16, "patch_size": 4}),
    "T5": ("T5ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0, "pad_token_id": 0}),
    "GPT2": ("GPT2LMHeadModel", _GPT2),
    "GPT2 classifier": ("GPT2ForSequenceClassification", {**_GPT2, "pad_token_id": 0}),
    "Mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
}
ADAPTED = ("GPT2", "Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Phi", "Phi3", "Bert", "ViT", "T5")


def tiny(name: str, seed: int = 0, **options: Any) -> Any:
    """A model of this architecture in fp32; its attention is the plain one, and nothing is dropped."""
    cls, config = _CONFIGS[name]
    model_class = getattr(transformers, cls)
    torch.manual_seed(seed)
    return model_class(model_class.config_class(**{**config, **options}, attn_implementation="eager")).eval()


def inputs_of(model: Any) -> dict[str, Tensor]:
    """A batch of two, with labels, and padding where there is text."""
    if hasattr(model.config, "image_size"):
        return {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
    tokens = torch.randint(3, model.config.vocab_size, (2, 9))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def peft_twin(base: Any, model: Any) -> Any:
    """PEFT's model over `base` with the updates of `model`."""
    layers = dict(lora_layers(model))
    first = next(iter(layers.values()))
    config = LoraConfig(
        r=first.r,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        target_modules=list(layers),
        fan_in_fan_out=first.holds_transposed,
    )
    twin = get_peft_model(base, config)
    with torch.no_grad():
        for name, layer in layers.items():
            theirs = twin.base_model.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(layer.lora_A)
            theirs.lora_B["default"].weight.copy_(layer.lora_B)
    return twin


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """A model with LoRA on all its linear layers, and PEFT's of the same weights and updates."""
    model = tiny(name, **options)
    base = copy.deepcopy(model)
    with_update(apply_lora(model, LoRAConfig(r=4, alpha=6, target_modules="all-linear")))
    return model, peft_twin(base, model)
