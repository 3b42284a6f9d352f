"""How many ranks a matrix needs, by its energy or above its rounding; what is then lost, and what saved."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.arguments import check_rank
from fastlora.lowrank.spectra import Factors, checked, decompose


class ParameterCounts(NamedTuple):
    """The number of parameters of a matrix and of its factors.

    Attributes:
        dense: N K.
        factored: r (N + K).
        percent: `factored` in percent of `dense`.
    """

    dense: int
    factored: int
    percent: float


def factorize_energy(W: Tensor, share: float) -> Factors:
    """The factors of least rank that keep a share of W's energy: ‖B A‖² >= share ‖W‖².

    Raises:
        TypeError: As by `decompose`, or if `share` is not a number.
        ValueError: As by `decompose`, or if `share` is outside (0, 1].
    """
    check_share(share)
    spectrum = decompose(W)
    return spectrum.factors(rank_for_energy(spectrum.S, share))


def rank_for_energy(S: Tensor, share: float) -> int:
    """The least r with sum_{i <= r} S_i² >= share sum_i S_i²; at least 1.

    Args:
        S: [k], singular values in descending order.
        share: In (0, 1].

    Raises:
        TypeError: If `share` is not a number.
        ValueError: If `share` is outside (0, 1].
    """
    check_share(share)
    kept = S.double().square().cumsum(0)
    return min(int((kept < share * kept[-1]).sum()) + 1, S.shape[0])


def matrix_rank(W: Tensor) -> int:
    """The number of singular values of W [N, K] above its rounding: S_i > max(N, K) eps S_1, with W's eps.

    Raises:
        TypeError: As by `decompose`.
        ValueError: As by `decompose`.

    Source: the tolerance of torch.linalg.matrix_rank and numpy.linalg.matrix_rank.
    """
    return numerical_rank(torch.linalg.svdvals(checked(W)), W)


def numerical_rank(S: Tensor, W: Tensor) -> int:
    """`matrix_rank` of W, given its singular values S in descending order."""
    return int(S.gt(max(W.shape) * torch.finfo(W.dtype).eps * S[0]).sum())


def optimal_error(S: Tensor, r: int) -> float:
    """‖W - B A‖ (Frobenius) of the best B A of rank r: sqrt(sum_{i > r} S_i²).

    Args:
        S: [k], all singular values of W in descending order.
        r: >= 0.

    Source: Eckart and Young, Psychometrika 1, 1936.
    """
    return float(S[r:].double().norm())


def reconstruction_error(W: Tensor, factors: Factors) -> float:
    """‖W - B A‖ (Frobenius)."""
    return float((W.to(factors.A.dtype) - factors.product()).double().norm())


def parameter_counts(N: int, K: int, r: int) -> ParameterCounts:
    """Count the parameters of a [N, K] matrix, and of its factors of rank r.

    Raises:
        TypeError: If N, K or r is not an int.
        ValueError: If N, K or r is below 1.
    """
    for name, size in (("N", N), ("K", K), ("r", r)):
        check_rank(size, name)
    return ParameterCounts(N * K, r * (N + K), 100 * r * (N + K) / (N * K))


def check_share(share: object) -> float:
    """The share, if it lies in (0, 1]; else TypeError or ValueError."""
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"share must be a number in (0, 1]; got {share!r}")
    if not (math.isfinite(share) and 0 < share <= 1):
        raise ValueError(f"share must be a number in (0, 1]; got {share!r}")
    return float(share)
