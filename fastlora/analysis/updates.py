"""Measures of an update: its norm relative to W's, its effective rank, and its amplification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastlora.formula.operands import unaffected_by_autocast
from fastlora.layer.base_weights import adapters_for_original, original_weight
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.magnitude import check_plain_lora
from fastlora.lowrank import Spectrum, decompose_product
from fastlora.model.find_layers import existing_layers
from fastlora.model.name_matching import listed
from fastlora.model.switching import active_adapter
from fastlora.tables import Part, Shown, Table
from fastlora.warning import warn


@dataclass(frozen=True)
class LayerUpdate:
    """The measures of a layer's update ΔW = s B A.

    Attributes:
        name: The layer's name in the model.
        shape: (N, K).
        r: Its rank as configured (after `initialize`, twice that).
        norm: ‖ΔW‖ (Frobenius).
        relative_norm: ‖ΔW‖ / ‖W‖; NaN if W is zero.
        effective_rank: The number of its directions, weighted by their size (see `effective_rank`).
        amplification: How much it amplifies directions that are weak in W (see `amplification`).
    """

    name: str
    shape: tuple[int, int]
    r: int
    norm: float
    relative_norm: float
    effective_rank: float
    amplification: float


@dataclass(frozen=True)
class UpdateReport(Shown):
    """The measures of an adapter in each layer. `str()` of it is a table, in a notebook too.

    Attributes:
        adapter: The adapter's name.
        layers: One entry for each layer that has a part in it.
    """

    adapter: str
    layers: tuple[LayerUpdate, ...]

    def parts(self) -> Iterator[Part]:
        """One table."""
        yield Table(
            ("layer", "shape", "r", "|ΔW|", "|ΔW|/|W|", "eff. rank", "amplification"),
            [
                (
                    layer.name or "(the model)",
                    f"{layer.shape[1]} -> {layer.shape[0]}",
                    str(layer.r),
                    *(
                        f"{measure:.4g}"
                        for measure in (
                            layer.norm, layer.relative_norm, layer.effective_rank, layer.amplification
                        )
                    ),
                )
                for layer in self.layers
            ],
        )  # fmt: skip


@torch.no_grad()
def update_report(model: nn.Module, adapter: str | None = None) -> UpdateReport:
    """Measure an adapter's update in every layer; the only [N, K] temporary is a copy of one W at a time.

    After `initialize`, the update is taken relative to the W from before.

    Args:
        model: A model with LoRA layers.
        adapter: The adapter's name; None means the one in use.

    Raises:
        ValueError: If there is no LoRA layer, no such adapter, it is DoRA's, or A, B or W is not finite.
    """
    layers, name = layers_with(model, adapter)
    return UpdateReport(name, tuple(_measure(path, layer, name) for path, layer in layers.items()))


def amplification(W: Tensor, B: Tensor, A: Tensor) -> float:
    """‖ΔW‖ / ‖Uᵀ W V‖, where ΔW = B A, and U and V are its singular vectors.

    The larger it is, the more ΔW amplifies directions that are weak in W. It is NaN if ΔW is zero, and
    infinite if W is zero in these directions.

    Args:
        W: [N, K].
        B: [N, r], with the scaling s multiplied in.
        A: [r, K].

    Raises:
        TypeError: As by `lowrank.decompose_product`.
        ValueError: As by `lowrank.decompose_product`.

    Source: arXiv 2106.09685, section 7.3, where all of the first r singular vectors are used. Here those are
    left out whose singular values are only rounding errors.
    """
    return _amplification(W, _without_rounding(decompose_product(B, A), B, A))


def effective_rank(S: Tensor) -> float:
    """exp of the entropy of S / sum S: r if r singular values are equal and the others are 0.

    It is near 1 if one value dominates, and 0 if all are zero.

    Args:
        S: [k], singular values.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    total = S.double().sum()
    if total == 0:
        return 0.0
    shares = S.double() / total
    return float(torch.special.entr(shares).sum().exp())


def layers_with(model: nn.Module, adapter: str | None) -> tuple[dict[str, FusedLoRALinear], str]:
    """({name: layer} of the layers with a part in an adapter, the adapter's name); None means the one in use.

    Raises:
        ValueError: If there is no LoRA layer, or no such adapter.
    """
    layers = existing_layers(model)
    name = active_adapter(model) if adapter is None else adapter
    found = {path: layer for path, layer in layers.items() if name in adapters_for_original(layer)}
    if not found:
        raise ValueError(f"adapter must be one of the model's (see adapter_names); got {adapter!r}")
    linear = {path: layer for path, layer in found.items() if isinstance(layer, FusedLoRALinear)}
    check_plain_lora(found, (name,), "be analyzed by s B A")
    if left := [path for path in found if path not in linear]:
        warn(
            f"updates of experts and embeddings are not analyzed; left out: {listed(left)}",
        )
    if not linear:
        raise ValueError(f"layers must be linear to be analyzed; {listed(found)} holds experts or embeddings")
    return linear, name


def _measure(path: str, layer: FusedLoRALinear, adapter: str) -> LayerUpdate:
    A, B, options = adapters_for_original(layer)[adapter]
    W = original_weight(layer).to(torch.promote_types(layer.weight.dtype, torch.float32))
    B = B.to(W.dtype) * options.scaling
    spectrum = _without_rounding(decompose_product(B, A.to(W.dtype)), B, A)
    norm, whole = float(spectrum.S.norm()), float(W.norm())
    N, K = W.shape
    return LayerUpdate(
        name=path,
        shape=(N, K),
        r=options.r,
        norm=norm,
        relative_norm=norm / whole if whole else math.nan,
        effective_rank=effective_rank(spectrum.S),
        amplification=_amplification(W, spectrum),
    )


def _without_rounding(spectrum: Spectrum, B: Tensor, A: Tensor) -> Spectrum:
    """The part of a spectrum above the rounding of B and A; the other singular vectors are arbitrary."""
    eps = torch.finfo(spectrum.S.dtype).eps
    size = B.detach().norm() * A.detach().norm()
    kept = int(spectrum.S.gt(max(B.shape[0], A.shape[1]) * eps * size).sum())
    return Spectrum(spectrum.U[:, :kept], spectrum.S[:kept], spectrum.Vt[:kept])


@unaffected_by_autocast
def _amplification(W: Tensor, spectrum: Spectrum) -> float:
    U, S, Vt = spectrum
    if not len(S):
        return math.nan
    stressed = float((U.t() @ W.detach().to(U.dtype) @ Vt.t()).norm())
    return float(S.norm()) / stressed if stressed else math.inf
