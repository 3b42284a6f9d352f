"""FusedLoRALinear: nn.Linear with a frozen weight and a trained low-rank update."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from fastlora import arguments
from fastlora.arguments import check_size
from fastlora.layer.adapter import DEFAULT, Options
from fastlora.layer.commits import commit
from fastlora.layer.forward_pass import ForwardPass
from fastlora.layer.magnitude import row_norms
from fastlora.layer.merging import MergeableLinear
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.replacement import check_plain_linear, linear_as
from fastlora.layer.state import Stored


class FusedLoRALinear(ForwardPass, Stored, MergeableLinear):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b with W and b frozen; A and B are trained.

    It can replace an nn.Linear: it has the same attributes, shapes and state_dict names (`weight`, `bias`),
    and a checkpoint of the plain layer loads into it. In addition, `adapters` holds its updates by name, each
    with `lora_A` [r, in_features] and `lora_B` [out_features, r]; one is in use at a time. A new update is
    exactly zero. With `dora` an update also scales the rows of W + s B A (see there).

    Nested tensors go through separate torch ops, not the fused kernels. To use it inside
    nn.TransformerEncoderLayer, whose inference fast path calls no linear layer, call `apply_lora`.

    Args:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        bias: Whether the layer has a (frozen) bias.
        r: Rank of the update, >= 1.
        alpha: The update is scaled by s = alpha / r; None means r, so that s = 1.
        dropout: Probability in [0, 1) of dropping an entry of x on the low-rank branch, in training.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        init: Initial values of A, with B zero: "gaussian" (std 1 / r) or "kaiming" (uniform, PEFT's default).
            Or "orthogonal": the first half of the ranks is nonzero in A alone (std 0.1), the rest in B alone,
            so that both get gradients from the first step on. PEFT also applies a random rotation, whose
            rounding makes its initial update not quite zero.
        lora_bias: Train a bias b_B [N] of B, the adapter's `lora_B_bias`, as well: s b_B is added to y. It
            starts at zero, and does not go with dora.
        dora: y = c (x Wᵀ + s (x Aᵀ) Bᵀ) + b with c = m / ‖W + s B A‖ by rows, a norm that takes no part in
            the derivative; the adapter has m, its `lora_magnitude_vector` [N], too, which starts as the norms
            of W's rows (DoRA, arXiv 2402.09353). Dropout falls on x Aᵀ alone, where PEFT's falls on x Wᵀ as
            well. A row of W + s B A that is zero stays zero.
        device: Where the parameters live.
        dtype: Dtype of W and b.
        adapter_dtype: Dtype of A and B, or its name. None means `dtype`, or fp32 if that has 16 bits, as in
            PEFT: in 16 bits, small optimizer steps would be rounded away.

    Attributes:
        enabled: If False, forward applies W alone (after `initialize`, the W from before it).
        adapters: All adapters by name; each stays there, whichever is in use.
        lora_A: A [r, K] of the adapter in use, as are `lora_B` [N, r], `r`, `alpha`, `dropout`, `rslora`,
            `init`, `dora`, `lora_bias` and `scaling`. All but the last three can be assigned. None if this
            layer has no part in it.
        start_A: [r, K]; beside it `start_B` [N, r] and `start_scaling`: what `initialize` took out of W; else
            None, None, 0.
        split: How tensor parallel divides the layer among processes; None if it does not.
        applied_as: Its name in the model, if `apply_lora` or a load made it; else "".

    Raises:
        TypeError: If r is not an int, alpha or dropout not a number, rslora not a bool, or a dtype not one
            of fp16, bf16, fp32 and fp64.
        ValueError: If r < 1, alpha is not finite, dropout is outside [0, 1), or init is unknown.

    Source: arXiv 2106.09685, section 4.1.
    """

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
        dora: bool = False,
        lora_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        adapter_dtype: torch.dtype | str | None = None,
    ) -> None:
        arguments.check_dtype("dtype", dtype)
        adapter_dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
        in_features = check_size("in_features", in_features)
        out_features = check_size("out_features", out_features)
        arguments.check_bool(bias, "bias")
        options = Options.checked(r, alpha, dropout, rslora, init, dora, lora_bias)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        norms = row_norms(self) if dora else None
        self._begin(DEFAULT, new_adapter(self.weight, options, adapter_dtype, norms))
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
        dora: bool = False,
        lora_bias: bool = False,
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
        layer = cls._from_linear_unfrozen(
            linear,
            r=r,
            alpha=alpha,
            dropout=dropout,
            rslora=rslora,
            init=init,
            dora=dora,
            lora_bias=lora_bias,
            adapter_dtype=adapter_dtype,
        )
        layer._freeze_base()
        return layer

    @classmethod
    def _from_linear_unfrozen(
        cls, linear: nn.Linear, *, adapter_dtype: Any, name: str = DEFAULT, **options: Any
    ) -> FusedLoRALinear:
        """As `from_linear`, but without freezing W and b, so that `linear` is unchanged."""
        check_plain_linear("linear", linear)
        adapter_dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
        checked = Options.checked(**options)
        layer = linear_as(linear, cls)
        norms = row_norms(linear) if checked.dora else None
        layer._begin(name, new_adapter(layer.weight, checked, adapter_dtype, norms))
        return layer

    @property
    def base_layer(self) -> nn.Module:
        """Does not exist; defined to stop PEFT from wrapping this layer as it would an nn.Linear.

        Raises:
            TypeError: If PEFT reads it to make such a wrapper.
            AttributeError: If anyone else reads it.
        """
        caller = sys._getframe(1)
        peft = caller.f_globals.get("__name__", "").startswith("peft.")
        if peft and caller.f_code.co_name == "get_base_layer":
            raise TypeError(
                "PEFT cannot adapt a FusedLoRALinear, which has LoRA already: exclude it from "
                "target_modules, or call fastlora.remove_lora first (merge=True keeps the update)"
            )
        raise AttributeError("FusedLoRALinear has no base_layer; its weight is W")

    def _freeze_base(self) -> None:
        """Freeze W and b, in the commit in progress or in a new one."""
        with commit() as changing:
            changing.freeze(self.weight)
            if self.bias is not None:
                changing.freeze(self.bias)
