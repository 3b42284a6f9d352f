"""The similarity of the directions of two updates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastlora.analysis.updates import layers_with
from fastlora.formula.operands import accumulation_dtype, unaffected_by_autocast
from fastlora.layer.base_weights import adapters_for_original
from fastlora.lowrank import decompose
from fastlora.tables import Part, Shown, Table


class Similarity(Shown, dict[str, Tensor]):
    """{layer: φ [r1, r2]}. `str()` of it is a table of two values for each layer, in a notebook too."""

    def parts(self) -> Iterator[Part]:
        """A table of φ for the first directions, φ(1, 1), and for all directions, φ(r1, r2)."""
        yield Table(
            ("layer", "r1", "r2", "φ(1, 1)", "φ(r1, r2)"),
            [
                (name or "(the model)", *map(str, phi.shape), f"{phi[0, 0]:.4g}", f"{phi[-1, -1]:.4g}")
                for name, phi in self.items()
            ],
        )


@unaffected_by_autocast
def subspace_similarity(first: Tensor, second: Tensor) -> Tensor:
    """φ(i, j) = ‖U_iᵀ V_j‖² / min(i, j), for the spans of the first i and the first j singular directions.

    It is 1 if the smaller span lies in the larger, and 0 if they are orthogonal. For random spans of i and j
    directions in K dimensions it is max(i, j) / K on average.

    Args:
        first: A [r1, K] of one update; its right singular vectors are compared. To compare B [N, r], pass Bᵀ.
        second: A [r2, K] of the other; the ranks may differ.

    Returns:
        [r1, r2] (rows no more than K each) in fp32 or fp64; entry [i - 1, j - 1] is φ(i, j).

    Raises:
        TypeError: As by `lowrank.decompose`.
        ValueError: As by `lowrank.decompose`, or if the two have different K.

    Source: arXiv 2106.09685, section 7.2, equation 4.
    """
    U, V = _directions(first), _directions(second)
    if U.shape[1] != V.shape[1]:
        raise ValueError(
            f"first and second must have the same number of columns; got {U.shape[1]} and {V.shape[1]}"
        )
    kind = accumulation_dtype(torch.promote_types(first.dtype, second.dtype))
    shared = (U @ V.t()).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, size + 1, device=shared.device) for size in shared.shape)
    return (shared / torch.minimum(i[:, None], j[None, :])).to(kind)


def _directions(A: Tensor) -> Tensor:
    """The right singular vectors of A, in fp64: rounding rotates those with nearly equal singular values."""
    wide = isinstance(A, Tensor) and A.is_floating_point() and A.device.type != "mps"  # which has no fp64
    return decompose(A.double() if wide else A).Vt


@torch.no_grad()
def adapter_similarity(model: nn.Module, first: str, second: str) -> Similarity:
    """`subspace_similarity` of the A of two adapters, in each layer that both have a part in.

    To compare runs with different ranks or seeds, load them into one model under two names.

    Returns:
        A dict {layer: [r1, r2]}.

    Raises:
        ValueError: If there is no LoRA layer, no such adapter, no layer with both, or an A is not finite.
    """
    one, _ = layers_with(model, first)
    other, _ = layers_with(model, second)
    both = {path: layer for path, layer in one.items() if path in other}
    if not both:
        raise ValueError(f"adapters must share a layer to be compared; {first!r} and {second!r} share none")
    found = Similarity()
    for path, layer in both.items():
        own = adapters_for_original(layer)
        found[path] = subspace_similarity(own[first][0], own[second][0])
    return found
