"""Reads and writes adapter_config.json as PEFT does (0.21), and checks that it describes plain LoRA.

An option that makes the adapter compute something else than plain LoRA on linear layers is refused by its
key; so is an unknown key. Which layers an adapter has is determined by its tensors, not by the config.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from fastlora import arguments
from fastlora.adapter_files.config_keys import DEFAULTS, check_supported, shown
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.patterns import Patterns
from fastlora.config_values import check_tokens

CONFIG_FILE: Final = "adapter_config.json"
# Enough for some 30,000 entries of rank_pattern.
LARGEST_CONFIG: Final = 4 << 20
_MOST_NAMES: Final = 1_000
# The keys in a digest, in this order. Changing them makes every adapter saved before look edited.
_DIGESTED: Final = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "ensure_weight_tying"),
)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The options that affect what the adapter computes; comments give PEFT's names if they differ.

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
    ties: bool = False  # ensure_weight_tying
    target_parameters: tuple[str, ...] = ()
    dora: bool = False  # use_dora
    lora_bias: bool = False
    bias: str = "none"
    trainable_token_indices: Mapping[str, Sequence[int]] | Sequence[int] | None = None

    def __post_init__(self) -> None:
        arguments.check_rank(self.r)
        if arguments.check_alpha(self.alpha, "lora_alpha") is None:
            raise TypeError("lora_alpha must be a finite number; got None")
        arguments.check_dropout(self.dropout)
        arguments.check_bool(self.rslora, "use_rslora")
        arguments.check_bool(self.dora, "use_dora")
        if arguments.check_bool(self.lora_bias, "lora_bias") and self.dora:
            raise ValueError("lora_bias and use_dora must not both be true, as PEFT says too")
        arguments.check_choice("bias", self.bias, arguments.BIASES)
        if self.dora and self.target_parameters:
            raise ValueError("use_dora and target_parameters must not be used together, as PEFT says too")
        for key, r in self.rank_pattern.items():
            arguments.check_rank(r, f"rank_pattern[{shown(key)}]")
        for key, alpha in self.alpha_pattern.items():
            if arguments.check_alpha(alpha, f"alpha_pattern[{shown(key)}]") is None:
                raise TypeError(f"alpha_pattern[{shown(key)}] must be a finite number; got None")

    @property
    def third(self) -> str:
        """What layers have beside A and B: "m" of DoRA, "b" for B's bias, or ""."""
        return "m" if self.dora else "b" if self.lora_bias else ""

    @cached_property
    def _ranks(self) -> Patterns[int]:
        return Patterns("rank_pattern", self.rank_pattern)

    @cached_property
    def _alphas(self) -> Patterns[float]:
        return Patterns("alpha_pattern", self.alpha_pattern)

    def rank(self, layer: str) -> int:
        """The rank of a layer; ValueError if matching the patterns takes too long."""
        return self._ranks.find(layer, self.r)

    def alpha_of(self, layer: str) -> float:
        """The alpha of a layer; ValueError if matching the patterns takes too long."""
        return float(self._alphas.find(layer, self.alpha))

    def dumps(self, **about: object) -> str:
        """The text of adapter_config.json.

        Args:
            about: Keys without a field here, such as target_modules and task_type.
        """
        # PEFT refuses a config with lora_bias and "gaussian", which says nothing of trained values.
        gaussian = self.init == "gaussian" and not self.lora_bias
        own = {
            "r": self.r,
            "lora_alpha": _short(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "lora_bias": self.lora_bias,
            "bias": self.bias,
            "init_lora_weights": "gaussian" if gaussian else True,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": {key: _short(alpha) for key, alpha in self.alpha_pattern.items()},
            "modules_to_save": list(self.modules_to_save) or None,
        }
        return json.dumps({**DEFAULTS, **own, **about}, indent=2, sort_keys=True)

    @classmethod
    def loads(cls, text: str | bytes) -> AdapterConfig:
        """Read the text of adapter_config.json, which is not trusted.

        Raises:
            AdapterError: If it is not JSON, or a key is missing, invalid or not supported.
        """
        if len(text) > LARGEST_CONFIG:
            raise AdapterError(f"adapter_config.json must be at most {LARGEST_CONFIG:,} bytes")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AdapterError(
                f"adapter_config.json must be JSON; {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, dict):
            raise AdapterError(f"adapter_config.json must hold an object; it holds a {type(found).__name__}")
        check_supported(found)
        values = {**DEFAULTS, **found}
        tokens = values["trainable_token_indices"]
        try:
            read = cls(
                r=values["r"],
                alpha=values["lora_alpha"],
                dropout=values["lora_dropout"],
                rslora=values["use_rslora"],
                init="gaussian" if values["init_lora_weights"] == "gaussian" else "kaiming",
                rank_pattern=_patterns("rank_pattern", values["rank_pattern"]),
                alpha_pattern=_patterns("alpha_pattern", values["alpha_pattern"]),
                modules_to_save=_names("modules_to_save", values["modules_to_save"]),
                ties=bool(values["ensure_weight_tying"]),
                target_parameters=_names("target_parameters", values["target_parameters"]),
                dora=values["use_dora"] or False,
                lora_bias=values["lora_bias"] or False,
                bias=values["bias"] or "none",
                trainable_token_indices=check_tokens(tokens) if tokens else None,
            )
            read._ranks, read._alphas  # noqa: B018 - raises here if a pattern is invalid
            return read
        except (TypeError, ValueError) as error:
            raise AdapterError(f"adapter_config.json: {error}") from error


def digest(text: str | bytes) -> str:
    """A digest of the options in a valid adapter_config.json that affect what the adapter computes.

    It does not depend on formatting, or on keys without effect.
    """
    found = json.loads(text)
    read = {key: found.get(key, DEFAULTS[key]) for key in _DIGESTED}
    # Left out where they are not used, as digests from before they were known lack them.
    if found.get("target_parameters"):
        read["target_parameters"] = sorted(found["target_parameters"])
    if found.get("use_dora"):
        read["use_dora"] = True
    if found.get("lora_bias"):
        read["lora_bias"] = True
    if found.get("bias") not in (None, "none"):
        read["bias"] = found["bias"]
    if found.get("trainable_token_indices"):
        read["trainable_token_indices"] = found["trainable_token_indices"]
    # Patterns are not sorted: the first one that matches counts, so their order matters.
    return hashlib.sha256(json.dumps(_with_floats(read)).encode()).hexdigest()


def _with_floats(value: Any) -> Any:
    """The value with every int as a float, so that 16 and 16.0 are the same."""
    if isinstance(value, dict):
        return {key: _with_floats(inner) for key, inner in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _patterns(key: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object; got {shown(value)}")
    return value


def _names(key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"{key} must be a list of names; got {shown(value)}")
    if len(value) > _MOST_NAMES:
        raise ValueError(f"{key} must have at most {_MOST_NAMES:,} names; got {len(value):,}")
    return tuple(value)


def _short(number: float) -> int | float:
    return int(number) if float(number).is_integer() else float(number)
