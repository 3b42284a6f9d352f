"""adapter_config.json as PEFT writes it (0.21), and what of it fastlora runs.

Reading refuses, by its key, everything that would make the adapter another function than plain LoRA on linear
layers, a key unknown here included. Which layers an adapter has is told by its tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fastlora import config
from fastlora.pretrained.errors import AdapterError
from fastlora.targets import matches_end

PEFT_VERSION: Final = "0.21.2"

# Every key that PEFT writes, at PEFT's default.
_DEFAULTS: Final[dict[str, Any]] = {
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

# Without effect on the function of a trained adapter over nn.Linear layers: who made it and for what, which
# layers were searched for, how A and B started, and options of what must be off.
_INDIFFERENT: Final = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules"),
        *("fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
        *("lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
        *("runtime_config", "target_modules", "task_type"),
    )
)
_READ: Final = frozenset(
    (
        *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_dropout"),
        *("modules_to_save", "peft_type", "r", "rank_pattern", "use_rslora"),
    )
)
# The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change W at the start: A and B alone do not tell the model.
_INITS_THAT_KEEP_W: Final = (True, False, "gaussian", "eva", "orthogonal")
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_CHOICES = 512, 3, 8

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What of adapter_config.json bears on the function; PEFT's names where they differ are in brackets.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    r: int
    alpha: float  # lora_alpha
    dropout: float = 0.0  # lora_dropout
    rslora: bool = False  # use_rslora
    init: str = "kaiming"  # init_lora_weights
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        config.check_rank(self.r)
        if config.check_alpha(self.alpha, "lora_alpha") is None:
            raise TypeError("lora_alpha must be a finite number; got None")
        config.check_dropout(self.dropout)
        config.check_bool(self.rslora, "use_rslora")
        for key, r in self.rank_pattern.items():
            config.check_rank(r, f"rank_pattern[{key!r}]")
        for key, alpha in self.alpha_pattern.items():
            if config.check_alpha(alpha, f"alpha_pattern[{key!r}]") is None:
                raise TypeError(f"alpha_pattern[{key!r}] must be a finite number; got None")

    def rank(self, layer: str) -> int:
        """r of a layer."""
        return _by_pattern(self.rank_pattern, layer, self.r)

    def alpha_of(self, layer: str) -> float:
        """Alpha of a layer."""
        return float(_by_pattern(self.alpha_pattern, layer, self.alpha))

    def dumps(self, **about: object) -> str:
        """The text of adapter_config.json.

        Args:
            about: Keys without a field here, such as target_modules and task_type.
        """
        own = {
            "r": self.r,
            "lora_alpha": _short(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "init_lora_weights": "gaussian" if self.init == "gaussian" else True,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": {key: _short(alpha) for key, alpha in self.alpha_pattern.items()},
            "modules_to_save": list(self.modules_to_save) or None,
        }
        return json.dumps({**_DEFAULTS, **own, **about}, indent=2, sort_keys=True)

    @classmethod
    def loads(cls, text: str | bytes) -> AdapterConfig:
        """Read the text of adapter_config.json; anything may stand there.

        Raises:
            AdapterError: If it is not JSON, or a key is missing, unsound or not supported.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AdapterError(
                f"adapter_config.json must be JSON; {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, dict):
            raise AdapterError(f"adapter_config.json must hold an object; it holds a {type(found).__name__}")
        _refuse_unsupported(found)
        values = {**_DEFAULTS, **found}
        try:
            return cls(
                r=values["r"],
                alpha=values["lora_alpha"],
                dropout=values["lora_dropout"],
                rslora=values["use_rslora"],
                init="gaussian" if values["init_lora_weights"] == "gaussian" else "kaiming",
                rank_pattern=_patterns("rank_pattern", values["rank_pattern"]),
                alpha_pattern=_patterns("alpha_pattern", values["alpha_pattern"]),
                modules_to_save=_names("modules_to_save", values["modules_to_save"]),
            )
        except (TypeError, ValueError) as error:
            raise AdapterError(f"adapter_config.json: {error}") from error


def _refuse_unsupported(found: Mapping[str, Any]) -> None:
    kind = found.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"peft_type must be 'LORA'; got {_shown(kind)}")
    if (bias := found.get("bias", "none")) != "none":
        raise AdapterError(f"bias must be 'none', as biases are frozen here; got {_shown(bias)}")
    init = found.get("init_lora_weights", True)
    if not any(init is known or (isinstance(init, str) and init == known) for known in _INITS_THAT_KEEP_W):
        raise AdapterError(
            f"init_lora_weights must be one that leaves W as it was, {_INITS_THAT_KEEP_W}; got "
            f"{_shown(init)} (save with PEFT's path_initial_model_for_weight_conversion)"
        )
    for key in sorted(found.keys() - _INDIFFERENT - _READ):
        if found[key] not in (None, False, "") and found[key] not in ({}, []):
            raise AdapterError(f"{key} is not supported, nor ignored; got {_shown(found[key])}")


def _patterns(key: str, value: object) -> Mapping[str, Any]:
    """A pattern whose keys are expressions that match fast: a file may come from anyone."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object; got {_shown(value)}")
    for expression in value:
        # A repeated group can take exponential time, each further repeat one more power of the length, and
        # each choice twice the time. Escaped ones count too: names of modules have none of these letters.
        repeats, choices = (sum(map(expression.count, letters)) for letters in ("*+{", "?|"))
        if (
            len(expression) > _LONGEST_PATTERN
            or repeats > _MOST_REPEATS
            or choices > _MOST_CHOICES
            or re.search(r"\)[*+{]", expression)
        ):
            raise ValueError(
                f"{key} must have keys of at most {_LONGEST_PATTERN} letters, {_MOST_REPEATS} repeats and "
                f"{_MOST_CHOICES} choices ('?', '|'), with no group repeated; got {_shown(expression)}"
            )
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{key} must have regular expressions as keys; got {_shown(expression)}"
            ) from error
    return value


def _names(key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"{key} must be a list of names; got {_shown(value)}")
    return tuple(value)


def _by_pattern(patterns: Mapping[str, _Number], layer: str, otherwise: _Number) -> _Number:
    """The number of the first key that matches, as PEFT chooses."""
    found = (number for key, number in patterns.items() if matches_end(re.compile(key), layer))
    return next(found, otherwise)


def _short(number: float) -> int | float:
    return int(number) if float(number).is_integer() else float(number)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
