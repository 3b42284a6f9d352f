"""One adapter: A, B, DoRA's m if it has one, and the options for scaling, dropout and initial values."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.formula import oracle
from fastlora.formula.operands import unaffected_by_autocast
from fastlora.layer.commits import commit

DEFAULT = "default"
SLOTS = ("lora_A", "lora_B")
MAGNITUDE = "lora_magnitude_vector"
_LONGEST_NAME = 100  # the name is also a directory's, for which file systems allow 255
_ORTHOGONAL_STD = 0.1  # PEFT's


class Options(NamedTuple):
    """How an update is scaled, regularized and initialized; the fields are FusedLoRALinear's arguments."""

    r: int
    alpha: float
    dropout: float
    rslora: bool
    init: str
    dora: bool = False

    @classmethod
    def checked(
        cls, r: int, alpha: float | None, dropout: float, rslora: bool, init: str, dora: bool = False
    ) -> Options:
        """The options, if they are valid; else TypeError or ValueError. An alpha of None means r."""
        r, alpha = arguments.check_rank(r), arguments.check_alpha(alpha)
        return cls(
            r=r,
            alpha=float(r) if alpha is None else alpha,
            dropout=arguments.check_dropout(dropout),
            rslora=arguments.check_bool(rslora, "rslora"),
            init=arguments.check_init(init),
            dora=arguments.check_bool(dora, "dora"),
        )

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return arguments.scaling(self.r, self.alpha, self.rslora)


class Adapter(nn.Module):
    """An adapter of a layer. It stays in `layer.adapters`, whether it is in use or not.

    Args:
        A: [r, K].
        B: [N, r].
        options: Each field becomes an attribute.
        m: [N], the magnitudes of a DoRA adapter; None of any other.

    Attributes:
        name: Its key in `layer.adapters`.
        of_embedding: Whether its layer is an embedding, where A starts at zero and B random.
        trains: While it is not in use: for each of `slots`, whether it is to be trained once the adapter is.
            Until then all are frozen.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude_vector: nn.Parameter
    r: int
    alpha: float
    dropout: float
    rslora: bool
    init: str
    dora: bool = False
    name: str = ""
    trains: tuple[bool, ...] = (True, True)
    of_embedding: bool = False
    # The wider dtype that A and B had before .half(), .bfloat16() or .to(dtype), for a warning in training.
    narrowed_from: torch.dtype | None = None

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, options: Options, m: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        vars(self).update(options._asdict())
        for slot, parameter in zip(SLOTS, (A, B), strict=True):
            self.register_parameter(slot, parameter)
        if m is not None:
            self.register_parameter(MAGNITUDE, m)
        vars(self)["trains"] = (True,) * len(self.slots)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return (*SLOTS, MAGNITUDE) if self.dora else SLOTS

    @property
    def options(self) -> Options:
        """The options as they are now."""
        return Options(self.r, self.alpha, self.dropout, self.rslora, self.init, self.dora)

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return arguments.scaling(self.r, self.alpha, self.rslora)

    @unaffected_by_autocast
    def added_to(self, W: Tensor) -> Tensor:
        """W + s B A [N, K], or DoRA's diag(c) (W + s B A), rounded once to W's dtype."""
        A, B, *m = self()
        if m:
            return oracle.dora_weight(W, A, B, self.scaling, *m)
        return oracle.effective_weight(W, A, B, self.scaling)

    def current(self) -> tuple[Tensor, ...]:
        """A and B, and m of DoRA, as a forward pass would take them now.

        Pruning and the older weight_norm compute them in a hook before a forward pass. The attributes have
        the values of the last one, from before an optimizer's step.
        """
        computed = any(slot not in self._parameters for slot in self.slots)
        found: tuple[Tensor, ...] = self() if computed else Adapter.forward(self)
        return found

    def forward(self) -> tuple[Tensor, ...]:
        """A and B, and m of DoRA. Called as a module, so that hooks which fetch offloaded ones run first."""
        A, B = self.lora_A, self.lora_B
        return (A, B, self.lora_magnitude_vector) if self.dora else (A, B)

    def _load_from_state_dict(self, *args: Any) -> None:
        with commit():
            super()._load_from_state_dict(*args)

    def _apply(self, fn: Any, recurse: bool = True) -> Adapter:
        before = self._dtype()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self._dtype()
        if before is not None and after is not None and before != after:
            widest = self.narrowed_from or before
            self.narrowed_from = widest if after.itemsize <= 2 < widest.itemsize else None
        return self

    def _dtype(self) -> torch.dtype | None:
        """A's; None while it is computed from other tensors."""
        A = self._parameters.get(SLOTS[0])
        return None if A is None else A.dtype

    def reset_parameters(self) -> None:
        """Reset A and B to a zero update. Code that builds a model on "meta" calls this after `to_empty`.

        DoRA's m starts as the row norms of W, so the layer resets it.
        """
        start(self.lora_A, self.lora_B, self.init, self.of_embedding)

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


def adapters_of(layer: Any) -> dict[str, tuple[Tensor, Tensor, Options]]:
    """A [r, K], B [N, r] and options of every adapter of a layer; of experts, A and B are stacks."""
    return {name: (*each.current()[:2], each.options) for name, each in layer.adapters.items()}


def check_name(name: object) -> str:
    """The name, if it can be part of a state_dict key and name a directory; else TypeError or ValueError."""
    wanted = (
        f"adapter name must be letters, digits, '_' and '-', at most {_LONGEST_NAME}, not starting with '-'; "
        f"got {arguments.shown(name)}"
    )
    if not isinstance(name, str):
        raise TypeError(wanted)
    if len(name) > _LONGEST_NAME or re.fullmatch(r"\w[\w-]*", name, re.ASCII) is None:
        raise ValueError(wanted)
    if hasattr(nn.ModuleDict, name) or name == "training":
        raise ValueError(f"adapter name must not be an attribute of nn.ModuleDict; got {name!r}")
    return name


def new_adapter(
    weight: Tensor, options: Options, dtype: torch.dtype | None, norms: Tensor | None = None
) -> Adapter:
    """A new adapter for a weight [N, K], on its device. For a `dtype` of None see `adapter_dtype_over`.

    For a stack of weights [E, N, K], A and B are stacks too.

    Args:
        weight: W, or a stand-in with its shape, dtype and device.
        options: The adapter's.
        dtype: Of its parameters.
        norms: [N], the norms of W's rows, for DoRA.

    Raises:
        ValueError: If the options ask for DoRA and there are no norms, as for a stack.
    """
    if options.dora and norms is None:
        raise ValueError("dora must be False for experts, as in PEFT (leave them out by exclude_modules)")
    *stack, N, K = weight.shape
    kind: dict[str, Any] = {
        "device": weight.device,
        "dtype": arguments.adapter_dtype_over(weight.dtype, dtype),
    }
    # A and B are trained later, even if this is called in inference mode.
    with torch.inference_mode(False):
        A, B = (
            nn.Parameter(torch.empty(*stack, *shape, **kind)) for shape in ((options.r, K), (N, options.r))
        )
        m = None if norms is None else nn.Parameter(norms.detach().to(**kind, copy=True))
    start(A, B, options.init)
    return Adapter(A, B, options, m)


def start(A: Tensor, B: Tensor, init: str, of_embedding: bool = False) -> None:
    """Initialize A [r, K] by `init` and B [N, r] so that B A is exactly zero; of stacks, each for itself.

    An embedding's A starts at zero, whatever `init` says, so that the row of its padding has no update.
    """
    if of_embedding:
        nn.init.zeros_(A)
        nn.init.normal_(B)
        return
    if A.dim() > 2:
        with torch.no_grad():
            for A_e, B_e in zip(A, B, strict=True):
                start(A_e, B_e, init)
        return
    if init == "gaussian":
        nn.init.normal_(A, std=1 / A.shape[0])
    elif init == "kaiming":
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    else:
        nn.init.normal_(A, std=_ORTHOGONAL_STD)
    nn.init.zeros_(B)
    if init == "orthogonal":
        halfway = (A.shape[0] + 1) // 2
        with torch.no_grad():
            A[halfway:] = 0
            B[:, halfway:].normal_(std=_ORTHOGONAL_STD)
