"""Small mixtures of experts of Transformers with random weights, and PEFT's models over them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from fastlora import LoRAConfig, apply_lora, lora_layers
from fastlora.experts.layer import FusedLoRAExperts

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_LM = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3Moe": ("Qwen3MoeForCausalLM", {"num_experts": 5, "moe_intermediate_size": 12, "head_dim": 8}),
    "Mixtral": ("MixtralForCausalLM", {"num_local_experts": 5}),
    "Olmoe": ("OlmoeForCausalLM", {"num_experts": 5}),
    "DeepseekV3": (
        "DeepseekV3ForCausalLM",
        {
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 12,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "qk_nope_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    "GptOss": ("GptOssForCausalLM", {"num_local_experts": 5, "head_dim": 8, "sliding_window": 4}),
    "Llama4": (
        "Llama4ForCausalLM",
        {"num_local_experts": 3, "head_dim": 8, "intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    ),
}
ADAPTED = ("Qwen3Moe", "Mixtral", "Olmoe", "DeepseekV3", "GptOss")


def tiny(name: str = "Qwen3Moe", seed: int = 0, **options: Any) -> Any:
    """A model in fp32 with plain attention."""
    cls, config = _CONFIGS[name]
    model_class = getattr(transformers, cls)
    torch.manual_seed(seed)
    config = model_class.config_class(**{**_LM, **config, **options}, attn_implementation="eager")
    model = model_class(config).eval()
    # Some weights, gpt-oss's biases among them, begin as zeros; and routers that send all alike show little.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def inputs_of(model: Any, rows: int = 2) -> dict[str, Tensor]:
    """A batch with labels."""
    tokens = torch.randint(3, model.config.vocab_size, (rows, 9))
    return {"input_ids": tokens, "labels": tokens}


def adapted(model: nn.Module, **options: Any) -> Any:
    """The model with LoRA on its experts, of rank 3; B is not zero."""
    config = LoRAConfig(**{"r": 3, "alpha": 6, "target_parameters": EXPERTS, **options})
    return with_update(apply_lora(model, config))


def with_update(model: Any) -> Any:
    """The model, whose updates have random values."""
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for each in layer.adapters.values():
                each.lora_A.normal_(std=0.3)
                each.lora_B.normal_(std=0.3)
    return model


def flat(layer: FusedLoRAExperts, name: str = "default") -> tuple[Tensor, Tensor]:
    """A and B as PEFT lays them out, entry by entry: row e * r + i of A, column i * E + e of B."""
    A, B = layer.adapters[name].lora_A.detach(), layer.adapters[name].lora_B.detach()
    E, r, K = A.shape
    their_A, their_B = A.new_empty(E * r, K), B.new_empty(B.shape[1], r * E)
    for e in range(E):
        for i in range(r):
            their_A[e * r + i] = A[e, i]
            their_B[:, i * E + e] = B[e, :, i]
    return their_A, their_B


def peft_twin(base: Any, model: Any) -> Any:
    """PEFT's model over `base` with the updates of `model`, which are on experts alone."""
    layers: dict[str, Any] = dict(lora_layers(model))
    first = next(iter(layers.values()))
    config = LoraConfig(r=first.r, lora_alpha=first.alpha, target_modules=[], target_parameters=list(layers))
    twin = get_peft_model(base, config)
    for name, wrapper in wrappers(twin).items():
        A, B = flat(layers[name])
        with torch.no_grad():
            wrapper.lora_A["default"].weight.copy_(A)
            wrapper.lora_B["default"].weight.copy_(B)
    return twin


def wrappers(model: Any) -> dict[str, Any]:
    """{name of the parameter: PEFT's wrapper of it}."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "parameter_name"):
            stem = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[f"{stem}.{module.parameter_name}"] = module
    return found


def pair(name: str = "Qwen3Moe", **options: Any) -> tuple[Any, Any]:
    """A model with LoRA on its experts, and PEFT's of the same weights and updates."""
    model = tiny(name)
    base = copy.deepcopy(model)
    adapted(model, **options)
    return model, peft_twin(base, model)
