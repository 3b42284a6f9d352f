"""LoRAConfig: which layers get a LoRA update and how, with checks of its values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from fastlora.arguments import (
    check_alpha,
    check_bool,
    check_dropout,
    check_dtype,
    check_init,
    check_rank,
    shown,
)

ALL_LINEAR: Final = "all-linear"
_PEFTS_NAMES: Final = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "use_dora": "dora",
}
TASKS: Final = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which linear layers of a model get a LoRA update, and of what kind.

    Names are matched as PEFT's LoraConfig matches them.

    Attributes:
        r: Rank of the update, >= 1.
        alpha: The update is scaled by alpha / r; None means each layer's own r, so that s = 1.
        dropout: Probability in [0, 1) of dropping an entry of x on the low-rank branch, in training.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        init: Initial values of A: "gaussian" (std 1 / r), "kaiming" (uniform, PEFT's default), or
            "orthogonal", which makes B nonzero as well (see `FusedLoRALinear`).
        dora: Train a magnitude for each row of W + s B A as well (see `FusedLoRALinear`; DoRA, arXiv
            2402.09353). Linear layers alone, plain or packed.
        lora_bias: Train a bias of B too (see `FusedLoRALinear`). Linear layers alone, and not with dora.
        adapter_dtype: Dtype of A and B, or its name, such as "float32"; None means each weight's own, but
            fp32 over a 16-bit weight, as in PEFT.
        target_modules: "all-linear"; or a regular expression that must match a module's whole name; or a
            sequence of names, each a whole name or the end of one ("q_proj" is "layers.0.attn.q_proj" too).
            None means "all-linear", or no module where there are target_parameters, as in PEFT.
        target_parameters: Names of experts' weights in 3-D parameters, such as "mlp.experts.down_proj"; each
            a whole name or the end of one.
        exclude_modules: What to leave out of these; a regular expression or a sequence of names likewise.
        rank_pattern: Ranks of their own: {name, or regular expression for the end of a name: r}. The first
            key that matches counts.
        alpha_pattern: The same for alpha.
        modules_to_save: Names of modules that are trained in full, in place, and saved with the updates, such
            as a new classifier; each a whole name or the end of one.
        trainable_token_indices: Tokens whose rows of the embedding are trained, such as new ones, and
            nothing else of it: a sequence of them for the model's embedding, whose rows count in an output
            layer tied to it too; or {name of a module, or the end of one: tokens}, where an output layer that
            is not tied may be named as well. The rows belong to the adapter; W stays as it is.
        task_type: PEFT's name of the task, such as "SEQ_CLS". The new head of a model for classification or
            question answering is trained in full and saved as if it were in modules_to_save, whatever the
            targets; layers in it are no targets. None means that the class of a Transformers model tells the
            task; "FEATURE_EXTRACTION" leaves the head to the targets.
        layers_to_transform: Index or indices of the layers to adapt, where target_modules is a sequence: the
            first number in a module's name. None means all.
        layers_pattern: What stands before that number ("layers", "h"), a regular expression or several; None
            means anything.
        group: Whether projections that share x are computed together (see `group_projections`).

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a number is out of range, init unknown, a sequence empty, or a pattern not a regular
            expression.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    init: str = "gaussian"
    dora: bool = False
    lora_bias: bool = False
    adapter_dtype: torch.dtype | str | None = None
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    modules_to_save: Sequence[str] | None = None
    trainable_token_indices: Mapping[str, Sequence[int]] | Sequence[int] | None = field(
        default=None, hash=False
    )
    task_type: str | None = None
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    target_parameters: Sequence[str] | None = None
    group: bool = False

    def __new__(cls, *args: Any, **options: Any) -> LoRAConfig:
        """Says what PEFT's names of options are called here."""
        for theirs, ours in _PEFTS_NAMES.items():
            if theirs in options:
                raise TypeError(
                    f"LoRAConfig has no {theirs}; it is called {ours} here (apply_lora takes a "
                    "peft.LoraConfig too)"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_rank(self.r)
        check_alpha(self.alpha)
        check_dropout(self.dropout)
        check_bool(self.rslora, "rslora")
        check_bool(self.dora, "dora")
        if check_bool(self.lora_bias, "lora_bias") and self.dora:
            raise ValueError("lora_bias and dora must not both be True, as in PEFT")
        check_init(self.init)
        check_bool(self.group, "group")
        # Copies, so that a list or dict changed later does not change the config.
        own = object.__setattr__
        own(self, "adapter_dtype", check_dtype("adapter_dtype", self.adapter_dtype))
        if isinstance(self.target_parameters, str):
            raise TypeError(
                f"target_parameters must be a sequence of names; got {shown(self.target_parameters)}"
            )
        if self.target_parameters is not None:
            own(self, "target_parameters", _names("target_parameters", self.target_parameters))
            if self.layers_to_transform is not None:
                raise ValueError("layers_to_transform goes with target_modules alone; name the parameters")
        if self.target_modules is None or (self.target_parameters and not self.target_modules):
            own(self, "target_modules", () if self.target_parameters else ALL_LINEAR)
        else:
            own(self, "target_modules", _names("target_modules", self.target_modules))
        if self.exclude_modules is not None:
            own(self, "exclude_modules", _names("exclude_modules", self.exclude_modules))
        if isinstance(self.modules_to_save, str):
            raise TypeError(f"modules_to_save must be a sequence of names; got {shown(self.modules_to_save)}")
        if self.modules_to_save is not None:
            own(self, "modules_to_save", _names("modules_to_save", self.modules_to_save))
        if self.trainable_token_indices is not None:
            own(self, "trainable_token_indices", check_tokens(self.trainable_token_indices))
        if self.task_type is not None:
            own(self, "task_type", check_task_name(self.task_type))
        own(self, "layers_to_transform", _indices(self.layers_to_transform))
        if self.layers_pattern is not None:
            patterns = _names("layers_pattern", self.layers_pattern)
            own(self, "layers_pattern", (patterns,) if isinstance(patterns, str) else patterns)
            for pattern in self.layers_pattern:
                _check_regex("layers_pattern", pattern)
        if self.layers_to_transform is None and self.layers_pattern is not None:
            raise ValueError("layers_pattern goes with layers_to_transform, which is None")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform goes with target_modules that are a sequence of names; got "
                f"{shown(self.target_modules)}"
            )
        own(self, "rank_pattern", _pattern("rank_pattern", self.rank_pattern))
        own(self, "alpha_pattern", _pattern("alpha_pattern", self.alpha_pattern))
        for key, r in self.rank_pattern.items():
            check_rank(r, f"rank_pattern[{shown(key)}]")
        for key, alpha in self.alpha_pattern.items():
            if check_alpha(alpha, f"alpha_pattern[{shown(key)}]") is None:
                raise TypeError(f"alpha_pattern[{shown(key)}] must be a finite number; got None")

    @property
    def targets_all_linear(self) -> bool:
        """Whether target_modules is "all-linear", in any case of letters."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR


def _indices(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    found = (value,) if isinstance(value, int) else value
    if isinstance(found, (Sequence, AbstractSet)) and found and not isinstance(found, (str, bytes)):
        indices = tuple(found)
        if all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in indices):
            return indices
    raise ValueError(f"layers_to_transform must be an int >= 0 or a sequence of such; got {shown(value)}")


def check_tokens(value: object) -> dict[str, tuple[int, ...]] | tuple[int, ...]:
    """trainable_token_indices as a dict of tuples or a tuple; else TypeError or ValueError."""
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) and name for name in value):
            raise ValueError(f"trainable_token_indices must map names to tokens; got {shown(value)}")
        return {name: _tokens(tokens) for name, tokens in value.items()}
    return _tokens(value)


def _tokens(value: object) -> tuple[int, ...]:
    wanted = f"trainable_token_indices must be different ints >= 0, at least one; got {shown(value)}"
    if not isinstance(value, (Sequence, AbstractSet)) or isinstance(value, (str, bytes)):
        raise TypeError(wanted)
    tokens = tuple(sorted(value)) if isinstance(value, AbstractSet) else tuple(value)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in tokens):
        raise TypeError(wanted)
    if not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise ValueError(wanted)
    return tokens


def check_task_name(value: object) -> str:
    """PEFT's name of a task, as a plain string; else ValueError listing the known ones."""
    if not isinstance(value, str) or value not in TASKS:
        raise ValueError(f"task_type must be one of {', '.join(TASKS)} or None; got {shown(value)}")
    return next(task for task in TASKS if task == value)  # PEFT's enumeration compares equal


def _names(argument: str, value: object) -> str | tuple[str, ...]:
    """A regular expression, or names as a tuple."""
    if isinstance(value, str):
        _check_regex(argument, value)
        return value
    if not isinstance(value, (Sequence, AbstractSet)) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{argument} must be a regular expression or a sequence of names; got {shown(value)}")
    names = tuple(sorted(value)) if isinstance(value, AbstractSet) else tuple(value)
    if not names or "" in names:
        raise ValueError(f"{argument} must hold at least one name and no empty one; got {shown(value)}")
    return names


def _pattern(argument: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{argument} must map names or regular expressions to numbers; got {shown(value)}")
    for key in value:
        _check_regex(f"{argument} key", key)
    return dict(value)


def _check_regex(argument: str, pattern: str) -> None:
    if not pattern:
        raise ValueError(f"{argument} must not be empty")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} must be a regular expression; got {shown(pattern)}: {error}") from error
