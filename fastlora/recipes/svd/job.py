"""The low-rank job: the rank of a matrix, and what is lost and saved if two factors replace it."""

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
    """The results of the job.

    Attributes:
        source: A description of the matrix.
        N: Its rows.
        K: Its columns.
        matrix_rank: Its numerical rank.
        r: The rank of the factors.
        energy: sum_{i <= r} S_i² / sum_i S_i².
        error: ‖W - B A‖ (Frobenius).
        optimal_error: The least error of any factors of rank r.
        relative_error: ‖W - B A‖ / ‖W‖; 0 if W is zero.
        parameters: Parameters of W, of its factors, and the latter in percent of the former.
        y_error: ‖y - ŷ‖ / ‖y‖ for random x and b, with y from W and ŷ from the factors.
        singular_values: All singular values, in descending order.
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
        source: A description of W.
        r: The rank of the factors. None means the least rank that keeps `energy`; without `energy`, W's
            numerical rank, or less if B and A would take more than half of W's parameters (at least 1).
        energy: The share of the energy to keep if r is None.
        seed: The seed for the x and b that y is computed from.
        out: Folder to write to; it is created if needed.

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
        # If no rank is asked for, choose one at which the factors save parameters.
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
