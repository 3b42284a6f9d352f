"""LoRAConfig: which layers get a LoRA update and how, with checks of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from fastlora.arguments import (
    BIASES,
    NO_BIASES,
    check_alpha,
    check_bool,
    check_choice,
    check_dropout,
    check_dtype,
    check_init,
    check_rank,
    shown,
)
from fastlora.config_values import (
    check_indices,
    check_names,
    check_pattern,
    check_regex,
    check_several_names,
    check_task_name,
    check_tokens,
)

ALL_LINEAR: Final = "all-linear"
_PEFTS_NAMES: Final = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "use_dora": "dora",
}


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
        bias: Which biases of the model are trained too, in place, as in PEFT: "none", those of layers with
            LoRA ("lora_only"), or "all". They are the model's, not the adapter's: one adapter alone can train
            them, and they stay as trained where it is not in use, or LoRA is switched off.
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
    bias: str = NO_BIASES
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
        check_choice("bias", self.bias, BIASES)
        check_bool(self.group, "group")
        self._own("adapter_dtype", check_dtype("adapter_dtype", self.adapter_dtype))
        self._check_names()
        if self.trainable_token_indices is not None:
            self._own("trainable_token_indices", check_tokens(self.trainable_token_indices))
        if self.task_type is not None:
            self._own("task_type", check_task_name(self.task_type))
        self._check_layers()
        self._check_patterns()

    def _own(self, field: str, value: object) -> None:
        """Set a field to a copy, so that a list or dict changed later does not change the config."""
        object.__setattr__(self, field, value)

    def _check_names(self) -> None:
        if self.target_parameters is not None:
            self._own("target_parameters", check_several_names("target_parameters", self.target_parameters))
            if self.layers_to_transform is not None:
                raise ValueError("layers_to_transform goes with target_modules alone; name the parameters")
        if self.target_modules is None or (self.target_parameters and not self.target_modules):
            self._own("target_modules", () if self.target_parameters else ALL_LINEAR)
        else:
            self._own("target_modules", check_names("target_modules", self.target_modules))
        if self.exclude_modules is not None:
            self._own("exclude_modules", check_names("exclude_modules", self.exclude_modules))
        if self.modules_to_save is not None:
            self._own("modules_to_save", check_several_names("modules_to_save", self.modules_to_save))

    def _check_layers(self) -> None:
        self._own("layers_to_transform", check_indices(self.layers_to_transform))
        if self.layers_pattern is not None:
            patterns = check_names("layers_pattern", self.layers_pattern)
            self._own("layers_pattern", (patterns,) if isinstance(patterns, str) else patterns)
            for pattern in self.layers_pattern:
                check_regex("layers_pattern", pattern)
        if self.layers_to_transform is None and self.layers_pattern is not None:
            raise ValueError("layers_pattern goes with layers_to_transform, which is None")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform goes with target_modules that are a sequence of names; got "
                f"{shown(self.target_modules)}"
            )

    def _check_patterns(self) -> None:
        self._own("rank_pattern", check_pattern("rank_pattern", self.rank_pattern))
        self._own("alpha_pattern", check_pattern("alpha_pattern", self.alpha_pattern))
        for key, r in self.rank_pattern.items():
            check_rank(r, f"rank_pattern[{shown(key)}]")
        for key, alpha in self.alpha_pattern.items():
            if check_alpha(alpha, f"alpha_pattern[{shown(key)}]") is None:
                raise TypeError(f"alpha_pattern[{shown(key)}] must be a finite number; got None")

    @property
    def targets_all_linear(self) -> bool:
        """Whether target_modules is "all-linear", in any case of letters."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR
