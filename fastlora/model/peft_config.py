"""Converts a peft.LoraConfig to a LoRAConfig, if every option that it uses is supported here."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from torch import nn

from fastlora.arguments import shown
from fastlora.config import LoRAConfig
from fastlora.model.wrappers import unwrapped

_SAME: Final = (
    *("r", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "task_type"),
    *("trainable_token_indices", "layers_to_transform", "layers_pattern"),
)
_RENAMED: Final = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "lora_bias": "lora_bias",
    "bias": "bias",
}
_INITS: Final = {"True": "kaiming", "gaussian": "gaussian", "orthogonal": "orthogonal"}
# Fields without effect: who made the config and for what, and details of options that must be off.
_INDIFFERENT: Final = frozenset(
    (
        *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    )
)


def as_config(model: nn.Module, config: object) -> LoRAConfig:
    """A LoRAConfig from a LoRAConfig or a peft.LoraConfig.

    Args:
        model: The model that it is for. PEFT chooses `target_modules` by its type if a config has none.
        config: Either kind of config.

    Raises:
        TypeError: If it is neither.
        ValueError: If a field of a peft.LoraConfig is not supported; the message names the field.
    """
    if isinstance(config, LoRAConfig):
        return config
    classes = type(config).__mro__
    if not any(cls.__name__ == "LoraConfig" and cls.__module__.startswith("peft.") for cls in classes):
        raise TypeError(f"config must be a fastlora.LoRAConfig or a peft.LoraConfig; got {shown(config)}")
    return _converted(model, config)


def _converted(model: nn.Module, theirs: Any) -> LoRAConfig:
    known = {*_SAME, *_RENAMED, *_INDIFFERENT, "target_modules", "target_parameters", "init_lora_weights"}
    for field in dataclasses.fields(theirs):
        value = getattr(theirs, field.name)
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if field.name not in known and value != made and value:
            raise ValueError(f"peft.LoraConfig's {field.name} is not supported here; got {shown(value)}")
    init = _INITS.get(str(theirs.init_lora_weights))
    if init is None:
        raise ValueError(
            "peft.LoraConfig's init_lora_weights must be True, 'gaussian' or 'orthogonal' (PiSSA and OLoRA: "
            f"fastlora.initialize after apply_lora); got {shown(theirs.init_lora_weights)}"
        )
    values: dict[str, Any] = {name: getattr(theirs, name) or None for name in _SAME if hasattr(theirs, name)}
    values |= {"layers_to_transform": _indices(theirs.layers_to_transform)}
    values |= {name: values[name] or {} for name in ("rank_pattern", "alpha_pattern")}
    values |= {ours: getattr(theirs, name) for name, ours in _RENAMED.items()}
    parameters = sorted(theirs.target_parameters or ()) or None
    modules = theirs.target_modules or (None if parameters else _pefts_choice(model))
    return LoRAConfig(**values, init=init, target_modules=modules, target_parameters=parameters)


def _indices(value: Any) -> Any:
    return value if isinstance(value, int) else (value or None)


def _pefts_choice(model: nn.Module) -> list[str]:
    """The target modules that PEFT chooses for a Transformers model if a config names none."""
    from peft.utils import constants

    choices = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    kind = getattr(getattr(unwrapped(model), "config", None), "model_type", None)
    if kind not in choices:
        raise ValueError(
            f"peft.LoraConfig's target_modules must be given: PEFT has no choice of its own for a model of "
            f"type {shown(kind)}"
        )
    return list(choices[kind])
