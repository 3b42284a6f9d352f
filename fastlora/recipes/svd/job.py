"""The low-rank job: how low the rank of a matrix is, and what two factors in its place lose and save."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fastlora import lowrank
from fastlora.recipes.frame import RESULTS, staged, write_results
from fastlora.recipes.svd.picture import draw_spectrum

PICTURE: Final = "svd.png"
_ROWS: Final = 8


@dataclass(frozen=True, kw_only=True)
class SvdResult:
    """What the job found.

    Attributes:
        source: What the matrix is.
        N: Its rows.
        K: Its columns.
        matrix_rank: Its numerical rank.
        r: The rank of the factors.
        energy: sum_{i <= r} S_i² / sum_i S_i².
        error: ‖W - B A‖, Frobenius.
        optimal_error: The least that any pair of rank r has.
        relative_error: ‖W - B A‖ / ‖W‖; 0 where W is zero.
        parameters: Of W, of its factors, and the latter in percent of the former.
        y_error: ‖y - ŷ‖ / ‖y‖ for random x and b, y from W and ŷ from the factors.
        singular_values: All, falling.
    """

    source: str
    N: int
    K: int
    matrix_rank: int
    r: int
    energy: float
    error: float
    optimal_error: float
    relative_error: float
    parameters: lowrank.ParameterCounts
    y_error: float
    singular_values: list[float]

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return asdict(self) | {"parameters": self.parameters._asdict()}


def run(W: Tensor, source: str, *, r: int | None, energy: float | None, seed: int, out: Path) -> SvdResult:
    """Factor a matrix, measure the factors, and write results.json and the picture.

    Args:
        W: [N, K].
        source: What it is, in words.
        r: The rank of the factors; None means what `energy` takes, or without it W's numerical rank, but none
            at which B and A take more than half of W's parameters (rank 1 at least).
        energy: The share of the energy to keep, where r is None.
        seed: Of the x and b that y is computed for.
        out: Folder to write to; it is made.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If W is not a finite matrix, r is out of range, or r and `energy` are both given.
        ImportError: If matplotlib is not installed.
        OSError: If a file cannot be written.
    """
    if r is not None and energy is not None:
        raise ValueError(f"rank and energy must not both be given; got {r} and {energy}")
    with staged(out, (RESULTS, PICTURE)) as draft:
        result = _measure(W, source, r, energy, seed)
        write_results(draft, result.as_json())
        shape = (result.N, result.K)
        title = f"{result.N} x {result.K}, {source}"
        draw_spectrum(result.singular_values, shape, result.r, title, draft / PICTURE)
    return result


def _measure(W: Tensor, source: str, r: int | None, energy: float | None, seed: int) -> SvdResult:
    spectrum = lowrank.decompose(W)
    found = lowrank.numerical_rank(spectrum.S, W)
    if r is None:
        # Without a wish, factors that save something: all of W's rank only where that is little.
        most = W.numel() // (2 * sum(W.shape))
        r = lowrank.rank_for_energy(spectrum.S, energy) if energy is not None else max(1, min(found, most))
    factors = spectrum.factors(r)
    N, K = W.shape
    norm = float(spectrum.S.double().norm())
    error, least = lowrank.reconstruction_error(W, factors), lowrank.optimal_error(spectrum.S, r)
    return SvdResult(
        source=source,
        N=N,
        K=K,
        matrix_rank=found,
        r=r,
        energy=1 - (least / norm) ** 2 if norm else 1.0,
        error=error,
        optimal_error=least,
        relative_error=error / norm if norm else 0.0,
        parameters=lowrank.parameter_counts(N, K, r),
        y_error=_y_error(W.to(factors.A.dtype), factors, seed),
        singular_values=spectrum.S.tolist(),
    )


def _y_error(W: Tensor, factors: lowrank.Factors, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(_ROWS, W.shape[1], generator=generator, dtype=W.dtype)
    b = torch.randn(W.shape[0], generator=generator, dtype=W.dtype)
    y = torch.nn.functional.linear(x, W, b)
    return float((factors.linear(x, b) - y).norm() / y.norm())
