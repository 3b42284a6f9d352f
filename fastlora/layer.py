"""FusedLoRALinear: nn.Linear with a frozen weight and a trained low-rank update."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlora import changes, config, residual, shards, shelf, untrained
from fastlora.arguments import check_size
from fastlora.changes import commit, exclusive
from fastlora.formula import oracle
from fastlora.formula.autograd import lora_linear
from fastlora.formula.operands import autocasts, check_base
from fastlora.split import Split
from fastlora.twin import check_own_forward, check_plain_linear, twin_of
from fastlora.writable import check_own, check_own_writable

_OWN_ATTRIBUTES = (*shelf.OPTIONS, "enabled", "adapter", "start_scaling", "split", "applied_as")
_MERGED_FROM = ("weight", "lora_A", "lora_B")


class FusedLoRALinear(nn.Linear):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b with W and b frozen; A and B are trained.

    It stands in for nn.Linear: the same attributes, shapes and state_dict names (`weight`, `bias`), with
    `lora_A` [r, in_features] and `lora_B` [out_features, r] beside them. A checkpoint of the plain layer
    loads into it. The update starts at exactly zero.

    Nested tensors go through separate torch ops, not the fused kernels. Inside nn.TransformerEncoderLayer,
    whose inference fast path calls no linear layer, put it by `apply_lora`.

    Args:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        bias: Whether the layer has a (frozen) bias.
        r: Rank of the update, >= 1.
        alpha: The update is scaled by s = alpha / r; None means r, so that s = 1.
        dropout: Probability in [0, 1) of dropping an entry of x on the low-rank branch, in training.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        init: How A starts: "gaussian" (std 1 / r), "kaiming" (uniform, as PEFT's default), or "orthogonal":
            the first half of the ranks starts in A (std 0.1), the rest in B, so that both get gradients from
            the first step on. PEFT turns these halves by a random rotation, whose rounding leaves an update.
        device: Where the parameters live.
        dtype: Dtype of W and b.
        adapter_dtype: Dtype of A and B, or its name; None means `dtype`, but fp32 where that has 16 bits, as
            in PEFT: in 16 bits small steps would be rounded away.

    Attributes:
        enabled: Where False, forward applies W alone: after `initialize`, the W from before it.
        adapter: Name of the adapter in use; None where the one in use has no part in this layer.
        start_A: [r, K], start_B: [N, r], start_scaling: what `initialize` took out of W; else None, None, 0.
        split: How the layer is divided among processes; None where it is whole.
        applied_as: Its name in the model when `apply_lora` or a load made it; "" otherwise.

    Raises:
        TypeError: If r is not an int, alpha or dropout not a number, rslora not a bool, or a dtype not one
            of fp16, bf16, fp32 and fp64.
        ValueError: If r < 1, alpha is not finite, dropout is outside [0, 1), or init is unknown.

    Source: arXiv 2106.09685, section 4.1.
    """

    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    adapter: str | None = shelf.DEFAULT
    start_A: Tensor | None
    start_B: Tensor | None
    start_scaling: float = 0.0
    split: Split | None = None
    applied_as: str = ""
    _base_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "gaussian",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        adapter_dtype: torch.dtype | str | None = None,
    ) -> None:
        config.check_dtype("dtype", dtype)
        adapter_dtype = config.check_dtype("adapter_dtype", adapter_dtype)
        in_features = check_size("in_features", in_features)
        out_features = check_size("out_features", out_features)
        config.check_bool(bias, "bias")
        self._configure(r, alpha, dropout, rslora, init)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._add_adapter(adapter_dtype)
        self._freeze_base()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "gaussian",
        adapter_dtype: torch.dtype | str | None = None,
    ) -> FusedLoRALinear:
        """Wrap an existing layer: the same weight and bias objects (now frozen), its hooks and its mode.

        The layer must be an nn.Linear and no subclass of it, as a subclass may compute something else. The
        options are the constructor's.

        Raises:
            TypeError: If `linear` does not compute exactly what nn.Linear computes (see
                `check_plain_linear`), or as in the constructor.
            ValueError: As in the constructor.
        """
        layer = cls._beside(linear, r, alpha, dropout, rslora, init, adapter_dtype)
        layer._freeze_base()
        return layer

    @classmethod
    def _beside(
        cls,
        linear: nn.Linear,
        r: int,
        alpha: float | None,
        dropout: float,
        rslora: bool,
        init: str,
        adapter_dtype: torch.dtype | str | None,
    ) -> FusedLoRALinear:
        """`from_linear`, but W and b are not frozen yet: nothing of `linear` has changed."""
        check_plain_linear("linear", linear)
        adapter_dtype = config.check_dtype("adapter_dtype", adapter_dtype)
        layer = twin_of(linear, cls)
        layer._configure(r, alpha, dropout, rslora, init)
        layer._add_adapter(adapter_dtype)
        return layer

    @property
    def base_layer(self) -> nn.Module:
        """Nothing: it is here to stop PEFT, which would put a layer around this one as around nn.Linear.

        Raises:
            TypeError: If PEFT asks while it makes such a layer.
            AttributeError: For everybody else.
        """
        caller = sys._getframe(1)
        peft = caller.f_globals.get("__name__", "").startswith("peft.")
        if peft and caller.f_code.co_name == "get_base_layer":
            raise TypeError(
                "PEFT cannot adapt a FusedLoRALinear, which has LoRA already: exclude it from "
                "target_modules, or call fastlora.remove_lora first (merge=True keeps the update)"
            )
        raise AttributeError("FusedLoRALinear has no base_layer; its weight is W")

    def _configure(self, r: int, alpha: float | None, dropout: float, rslora: bool, init: str) -> None:
        self.r = config.check_rank(r)
        alpha = config.check_alpha(alpha)
        self.alpha = float(r) if alpha is None else alpha
        self.dropout = config.check_dropout(dropout)
        self.rslora = config.check_bool(rslora, "rslora")
        self.init = config.check_init(init)
        self.enabled = True

    def _add_adapter(self, dtype: torch.dtype | None) -> None:
        N, K = self.weight.shape
        dtype = config.adapter_dtype_over(self.weight.dtype, dtype)
        kind: dict[str, Any] = {"device": self.weight.device, "dtype": dtype}
        # Trained later, whatever mode this is called in.
        with torch.inference_mode(False):
            self.lora_A = nn.Parameter(torch.empty(self.r, K, **kind))
            self.lora_B = nn.Parameter(torch.empty(N, self.r, **kind))
        self.register_buffer("_base_weight", None, persistent=False)
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        shelf.start(self.lora_A, self.lora_B, self.init)
        untrained.watch(self)

    def __setstate__(self, state: Any) -> None:
        """A copied or unpickled layer is watched as a made one is."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        untrained.watch(self)

    def _freeze_base(self) -> None:
        """Freeze W and b, as a part of the commit at work or in one of its own."""
        with commit() as changing:
            changing.freeze(self.weight)
            if self.bias is not None:
                changing.freeze(self.bias)

    @exclusive
    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Start the update anew: at zero by `init`, or at what `initialize` took out of W.

        Raises:
            ValueError: If A or B cannot be written in place.
        """
        check_own_writable(self, shelf.SLOTS, "the layer")
        A, B = self.start_A, self.start_B
        if A is None or B is None:
            A, B = torch.empty_like(self.lora_A), torch.empty_like(self.lora_B)
            shelf.start(A, B, self.init)
        with commit() as changing:
            changing.write(self.lora_A, A)
            changing.write(self.lora_B, B)

    def reset_parameters(self) -> None:
        """Start W, b, A and B anew; what builds a model on "meta" calls it after `to_empty`."""
        super().reset_parameters()
        if "lora_A" in self._parameters:  # nn.Linear's constructor calls this before there is an adapter
            self._base_weight = self.start_A = self.start_B = None
            self.reset_adapter()

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return config.scaling(self.r, self.alpha, self.rslora)

    @property
    def merged(self) -> bool:
        """Whether `weight` holds W + s B A at present."""
        return self._base_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: [..., in_features], in the weight's dtype and on its device.

        Returns:
            [..., out_features].

        Raises:
            TypeError: If x is no Tensor, or not in the weight's dtype.
            ValueError: If x's last dimension or device is wrong.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a Tensor; got {type(x).__name__}")
        # What is compiled holds one state by its guards; it would be compiled anew after every change.
        if torch.compiler.is_compiling():
            return self._computed(x)
        moved = changes.moved
        try:
            y = self._computed(x)
        except Exception:  # of operands from two states, say
            if changes.moved == moved and not moved & 1:
                raise
        else:
            if changes.moved == moved and not moved & 1:
                return y
        return changes.undisturbed(self._computed, x)

    def _computed(self, x: Tensor) -> Tensor:
        own: dict[str, Any] = self._parameters  # not through __getattr__, which takes 0.6 us for each
        try:
            W, b, A, B = own["weight"], own["bias"], own["lora_A"], own["lora_B"]
        except KeyError:  # parametrized, pruned, or a view of a flat parameter
            W, b, A, B = self.weight, self.bias, self.lora_A, self.lora_B
        kept = self._buffers["_base_weight"]
        if kept is not None and not self.enabled:
            W = kept
        if self.split is not None:
            W, b, A, B = self.split.local(W, b, A, B)
        if W.requires_grad or (b is not None and b.requires_grad):
            warnings.warn(
                "weight.requires_grad or bias.requires_grad is True, but FusedLoRALinear gives neither a "
                "gradient; to train them use remove_lora and unfreeze",
                stacklevel=3,
            )
            W, b = W.detach(), None if b is None else b.detach()
        if self.enabled and kept is None:
            dropout = self.dropout if self.training else 0.0
            return lora_linear(x, W, b, A, B, self.scaling, dropout=dropout)
        untrained.suspect(self)
        if not (x.is_nested or autocasts(x) or torch._C._get_tracing_state()):
            check_base(x, W, b)
        if self.enabled or self.start_A is None or self.start_B is None:
            return F.linear(x, W, b)
        return oracle.unfused(x, W, b, self.start_A, self.start_B, self.start_scaling)

    @exclusive
    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """A copy of the [N, K] weight that forward applies: W + s B A while enabled, else W.

        That W is exact, but after `initialize`: then it is what is left and what was taken out, rounded once.
        """
        if self.enabled and not self.merged:
            return self._sum()
        return self.weight.detach().clone() if self.enabled else residual.whole_weight(self)

    @exclusive
    @torch.no_grad()
    def merge(self) -> None:
        """Add s B A into `weight`, summed in fp32 and rounded once; W is kept aside for `unmerge`.

        While merged, forward is one plain linear and A and B receive no gradient. Merging twice changes
        nothing.

        Raises:
            ValueError: If the sum holds NaN or infinity, or `weight` is computed from others (by a
                parametrization, say) or cannot be written in place; it is as it was.
        """
        if self.merged:
            return
        check_own_writable(self, ("weight",), "the layer")
        total = self._finite_sum()
        with torch.inference_mode(False):
            base = self.weight.detach().clone()
        with commit() as changing:
            changing.put(self._buffers, "_base_weight", base)
            changing.write(self.weight, total, before=base)

    @exclusive
    def unmerge(self) -> None:
        """Put W back, bit for bit. Unmerging twice changes nothing.

        Raises:
            ValueError: If `weight` cannot be written any more.
        """
        if self.merged:
            check_own_writable(self, ("weight",), "the layer")
            with commit() as changing:
                changing.then(self._put_back)

    @torch.no_grad()
    def _put_back(self) -> None:
        if self._base_weight is not None:
            self.weight.copy_(self._base_weight)
            self._base_weight = None

    @exclusive
    @torch.no_grad()
    def to_linear(self, merge: bool = True) -> nn.Linear:
        """A plain nn.Linear with this layer's bias object, hooks and mode; this layer stays as it is.

        Args:
            merge: Whether its weight is W + s B A (a new, frozen parameter) or W: this layer's own parameter,
                or a copy of W while that parameter holds the merged weight.

        Raises:
            TypeError: If this layer's forward was replaced.
            ValueError: If W + s B A is wanted and holds NaN or infinity; or if W or b is computed from
                others, by a parametrization, say.
        """
        config.check_bool(merge, "merge")
        check_own_forward("layer", self)
        check_own(self, ("weight", "bias"), "the layer")
        if merge:
            weight = nn.Parameter(self._finite_sum(), requires_grad=False)
        elif self._base_weight is not None:
            weight = nn.Parameter(self._base_weight.clone(), requires_grad=False)
        else:
            weight = self.weight
        linear = self._plain_twin()
        linear.weight = weight
        return linear

    def _plain_twin(self) -> nn.Linear:
        """An nn.Linear with this layer's own weight and bias objects, hooks and mode."""
        return twin_of(self, nn.Linear, without=_OWN_ATTRIBUTES)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script calls first, on this layer and on every model around it."""
        raise TypeError(
            "torch.jit.script cannot compile FusedLoRALinear, whose passes run in a Python function; "
            "use torch.compile, torch.export or torch.jit.trace, or merge first (remove_lora)"
        )

    def _base(self) -> Tensor:
        return residual.frozen_weight(self)

    def _sum(self) -> Tensor:
        return oracle.effective_weight(self._base(), self.lora_A, self.lora_B, self.scaling)

    def _finite_sum(self) -> Tensor:
        total = self._sum()
        if not total.is_meta and not shards.all_finite(total):
            raise ValueError(
                f"W + s B A must be finite in {total.dtype} to be merged; it holds NaN or infinity"
            )
        return total

    def extra_repr(self) -> str:
        """nn.Linear's, and the update's."""
        parts = [super().extra_repr(), f"r={self.r}, alpha={self.alpha:g}"]
        if self.dropout:
            parts.append(f"dropout={self.dropout:g}")
        parts += [name for name, on in (("rslora", self.rslora), ("merged", self.merged)) if on]
        parts += [] if self.enabled else ["disabled"]
        parts += [] if self.adapter == shelf.DEFAULT else [f"adapter={self.adapter}"]
        return ", ".join(parts)

    @exclusive
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A checkpoint always holds W, merged or not: adding the update again on loading would be wrong."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._base_weight is not None:
            destination[prefix + "weight"] = self._base_weight
        shelf.rename_saved(destination, prefix, self.adapter)

    @exclusive
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without A and B, the plain layer's, leaves the update as it is.

        A merged layer is unmerged first: its weight would not fit what is loaded.
        """
        missing: list[str] = args[2]
        plain = not any(name.startswith((prefix + "lora_", prefix + "adapters.")) for name in state_dict)
        shelf.rename_loaded(state_dict, prefix, self.adapter)
        if any(prefix + name in state_dict for name in _MERGED_FROM):
            self.unmerge()
        with commit():
            super()._load_from_state_dict(state_dict, prefix, *args)
        if plain and prefix + "weight" in state_dict:
            shelf.keep_idle(state_dict, prefix, self)
            own = {prefix + "lora_A", prefix + "lora_B"}
            missing[:] = [name for name in missing if name not in own]
        shelf.name_missing(missing, prefix, self.adapter)
