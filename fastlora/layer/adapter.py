"""One adapter: A, B, perhaps DoRA's m or a bias of B, and the options for scaling, dropout and the start."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.formula import oracle
from fastlora.formula.operands import unaffected_by_autocast
from fastlora.layer import training_warnings
from fastlora.layer.adapter_dropout import Dropping
from fastlora.layer.commits import commit
from fastlora.layer.starts import start

DEFAULT = "default"
SLOTS = ("lora_A", "lora_B")
MAGNITUDE = "lora_magnitude_vector"
BIAS = "lora_B_bias"
ALL_SLOTS = (*SLOTS, MAGNITUDE, BIAS)


class Options(NamedTuple):
    """How an update is scaled, regularized and initialized; the fields are FusedLoRALinear's arguments."""

    r: int
    alpha: float
    dropout: float
    rslora: bool
    init: str
    dora: bool = False
    lora_bias: bool = False

    @classmethod
    def checked(
        cls,
        r: int,
        alpha: float | None,
        dropout: float,
        rslora: bool,
        init: str,
        dora: bool = False,
        lora_bias: bool = False,
    ) -> Options:
        """The options, if they are valid; else TypeError or ValueError. An alpha of None means r."""
        r, alpha = arguments.check_rank(r), arguments.check_alpha(alpha)
        if arguments.check_bool(lora_bias, "lora_bias") and dora:
            raise ValueError("lora_bias and dora must not both be True, as in PEFT")
        return cls(
            r=r,
            alpha=float(r) if alpha is None else alpha,
            dropout=arguments.check_dropout(dropout),
            rslora=arguments.check_bool(rslora, "rslora"),
            init=arguments.check_init(init),
            dora=arguments.check_bool(dora, "dora"),
            lora_bias=lora_bias,
        )

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return arguments.scaling(self.r, self.alpha, self.rslora)


class Adapter(Dropping):
    """An adapter of a layer. It stays in `layer.adapters`, whether it is in use or not.

    Args:
        A: [r, K].
        B: [N, r].
        options: Each field becomes an attribute.
        third: [N], the magnitudes m of a DoRA adapter, or the bias b_B of B; None of any other.

    Attributes:
        name: Its key in `layer.adapters`.
        biases: Which biases of the model are trained beside it: "none", "lora_only" or "all".
        of_embedding: Whether its layer is an embedding, where A starts at zero and B random.
        trains: While it is not in use: for each of `slots`, whether it is to be trained once the adapter is.
            Until then all are frozen.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude_vector: nn.Parameter
    lora_B_bias: nn.Parameter
    r: int
    alpha: float
    rslora: bool
    init: str
    dora: bool = False
    lora_bias: bool = False
    name: str = ""
    trains: tuple[bool, ...] = (True, True)
    of_embedding: bool = False
    biases: str = arguments.NO_BIASES
    # The wider dtype that A and B had before .half(), .bfloat16() or .to(dtype), for a warning in training.
    narrowed_from: torch.dtype | None = None

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, options: Options, third: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        for name, value in options._asdict().items():
            setattr(self, name, value)
        parameters = (A, B) if third is None else (A, B, third)
        for slot, parameter in zip(self.slots, parameters, strict=True):
            self.register_parameter(slot, parameter)
        vars(self)["trains"] = (True,) * len(self.slots)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of its parameters."""
        if self.dora:
            return (*SLOTS, MAGNITUDE)
        return (*SLOTS, BIAS) if self.lora_bias else SLOTS

    @property
    def options(self) -> Options:
        """The options as they are now."""
        return Options(self.r, self.alpha, self.dropout, self.rslora, self.init, self.dora, self.lora_bias)

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return arguments.scaling(self.r, self.alpha, self.rslora)

    @unaffected_by_autocast
    def added_to(self, W: Tensor) -> Tensor:
        """W + s B A [N, K], or DoRA's diag(c) (W + s B A), rounded once to W's dtype."""
        A, B, *third = self()
        if self.dora:
            return oracle.dora_weight(W, A, B, self.scaling, *third)
        return oracle.effective_weight(W, A, B, self.scaling)

    def current(self) -> tuple[Tensor, ...]:
        """A, B, and m or b_B, as a forward pass would take them now.

        Pruning and the older weight_norm compute them in a hook before a forward pass. The attributes have
        the values of the last one, from before an optimizer's step.
        """
        computed = any(slot not in self._parameters for slot in self.slots)
        found: tuple[Tensor, ...] = self() if computed else Adapter.forward(self)
        return found

    def forward(self) -> tuple[Tensor, ...]:
        """A, B, and m or b_B. Called as a module, so that hooks which fetch offloaded ones run first."""
        return tuple(getattr(self, slot) for slot in self.slots)

    @unaffected_by_autocast
    def added_to_bias(self, b: Tensor | None, dtype: torch.dtype) -> Tensor:
        """b + s b_B [N], of an adapter with lora_bias, rounded once to a dtype."""
        wide = torch.promote_types(dtype, torch.float32)
        total = self()[2].to(wide) * self.scaling
        found: Tensor = (total if b is None else b.to(wide) + total).to(dtype)
        return found

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's; an optimizer may hold the parameter that another takes the place of."""
        if "trains" in vars(self):  # none is the first
            training_warnings.replaced(self)
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        """As nn.Module's; a parametrization calls it, which may put parameters of its own in the place."""
        training_warnings.replaced(self)
        super().__delattr__(name)

    def _load_from_state_dict(self, *args: Any) -> None:
        with commit():
            super()._load_from_state_dict(*args)

    def _apply(self, fn: Any, recurse: bool = True) -> Adapter:
        before, own = self._dtype(), list(self._parameters.values())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self._dtype()
        if any(now is not one for now, one in zip(self._parameters.values(), own, strict=True)):
            training_warnings.replaced(self)
        if before is not None and after is not None and before != after:
            widest = self.narrowed_from or before
            self.narrowed_from = widest if after.itemsize <= 2 < widest.itemsize else None
        return self

    def _dtype(self) -> torch.dtype | None:
        """A's; None while it is computed from other tensors."""
        A = self._parameters.get(SLOTS[0])
        return None if A is None else A.dtype

    def reset_parameters(self) -> None:
        """Reset A, B, b_B to a zero update. Code that builds a model on "meta" calls this after `to_empty`.

        DoRA's m starts as the row norms of W, so the layer resets it.
        """
        start(self.lora_A, self.lora_B, self.init, self.of_embedding)
        if self.lora_bias:
            nn.init.zeros_(self.lora_B_bias)

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options._asdict().items())


class Adapters(nn.ModuleDict):
    """The adapters of a layer, by name."""

    # Part of a layer, hence left out of the model's module names: see model/wrappers.py.
    is_inside_a_layer = True

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of this name."""
        return cast(Adapter, super().__getitem__(name))

    def _refuse(self, *_: Any) -> None:
        """The layer would go on using the adapter that was here before, and the new one would be saved.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "layer.adapters must be changed by add_adapter, load_adapter, delete_adapter; the layer would go "
            "on using what was here before (layer.lora_A, or that of layer.adapters[name], can be assigned)"
        )

    __setitem__ = __delitem__ = clear = _refuse


def adapters_of(layer: Any) -> dict[str, tuple[Tensor, Tensor, Options]]:
    """A [r, K], B [N, r] and options of every adapter of a layer; of experts, A and B are stacks."""
    return {name: (*each.current()[:2], each.options) for name, each in layer.adapters.items()}


def with_bias(y: Tensor, s: float, b_B: Tensor) -> Tensor:
    """y + s b_B [..., N] in y's dtype."""
    return y + (b_B * s).to(y.dtype)
