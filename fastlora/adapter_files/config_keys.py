"""The keys of adapter_config.json: which are read, which have no effect, and which are refused.

The keys are those of PEFT 0.21's LoraConfig and of earlier versions. An unknown key is accepted if its value
is null, false or empty: it is an option of a later version that is not in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastlora.adapter_files.errors import AdapterError

PEFT_VERSION: Final = "0.21.2"

# Every key that PEFT writes, with PEFT's default value.
DEFAULTS: Final[dict[str, Any]] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": PEFT_VERSION,
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}

_READ: Final = frozenset(
    (
        *("alpha_pattern", "bias", "ensure_weight_tying", "init_lora_weights", "lora_alpha", "lora_bias"),
        *("lora_dropout", "modules_to_save", "peft_type", "r", "rank_pattern", "target_parameters"),
        *("trainable_token_indices", "use_dora", "use_rslora"),
    )
)

# Keys that do not affect what a trained adapter on nn.Linear layers computes, whatever their values.
_WITHOUT_EFFECT: Final = {
    "auto_mapping": "the class that the base model had",
    "base_model_name_or_path": "where the base model came from",
    "revision": "its revision",
    "task_type": "what the model was trained for; its head is among the tensors",
    "peft_version": "who wrote it",
    "inference_mode": "whether PEFT trains it once loaded",
    "runtime_config": "where PEFT moves tensors while it computes",
    "merge_weights": "whether PEFT 0.2 merged it in eval mode",
    "target_modules": "which layers were looked for; the tensors say which were found",
    "exclude_modules": "the same",
    "layers_to_transform": "the same",
    "layers_pattern": "the same",
    "fan_in_fan_out": "how a Conv1D holds its weight; PEFT ignores it on nn.Linear",
    "loftq_config": "how A and B began, as init_lora_weights says",
    "eva_config": "the same",
    "corda_config": "the same",
    "lora_ga_config": "the same",
    "megatron_core": "a package, used with megatron_config alone",
    "qalora_group_size": "used with use_qalora alone",
}

# Keys that make the adapter compute something else, and what to do if one is set.
_REFUSED: Final = {
    "alora_invocation_tokens": "aLoRA acts from some token on; use it with PEFT",
    "arrow_config": "Arrow routes tokens between adapters; load each of these adapters by itself",
    "enable_lora": "of PEFT 0.2's merged layers; load and save it with PEFT 0.3, which split them",
    "kasa_config": "KaSA changes W and scales between A and B; use it with PEFT",
    "layer_replication": "layers are copied; copy them in the model first, then take the key out",
    "megatron_config": "for Megatron's parallel layers; take the key out if the model has nn.Linear layers",
    "monteclora_config": "MonteCLoRA samples its updates; use it with PEFT",
    "use_bdlora": "A or B is block-diagonal; use it with PEFT",
    "use_qalora": "QALoRA pools the inputs; use it with PEFT",
    "velora_config": "VeLoRA trains with another backward pass; take the key out to go on with LoRA's own",
}
_UNKNOWN: Final = (
    f"unknown to PEFT {PEFT_VERSION}; save the adapter with that, or take the key out if it changes nothing"
)

# The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change W initially, so A and B alone do not give the model.
_INITS_THAT_KEEP_W: Final = (True, False, "gaussian", "eva", "orthogonal")


def check_supported(found: Mapping[str, Any]) -> None:
    """Raise AdapterError, naming the key, if a config means anything but plain LoRA on nn.Linear."""
    kind = found.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"peft_type must be 'LORA'; got {shown(kind)} (merge it into the model with PEFT)")
    init = found.get("init_lora_weights", True)
    if not any(init is known or (isinstance(init, str) and init == known) for known in _INITS_THAT_KEEP_W):
        raise AdapterError(
            f"init_lora_weights must be one that leaves W as it was, {_INITS_THAT_KEEP_W}; got "
            f"{shown(init)} (save with PEFT's path_initial_model_for_weight_conversion)"
        )
    for key in sorted(found.keys() - _WITHOUT_EFFECT.keys() - _READ):
        if found[key] not in (None, False, "") and found[key] not in ({}, []):
            what = _REFUSED.get(key, _UNKNOWN)
            raise AdapterError(
                f"{shown(key)[1:-1]} is not supported, nor ignored: {what}; got {shown(found[key])}"
            )


def shown(value: object) -> str:
    """A value for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
