"""Low-rank matrices: the rank of a matrix, the two factors nearest to it, and the parameters they save.

    W = U S Vᵀ        B = U_r √S_r  [N, r]        A = √S_r V_rᵀ  [r, K]        ‖W - B A‖² = sum_{i > r} S_i²

No other B and A of rank r come nearer to W (Eckart and Young, 1936). Everything is computed and returned in
fp32, or in fp64 if W is fp64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.arguments import check_rank
from fastlora.formula.operands import accumulation_dtype, unaffected_by_autocast

# Random columns in addition to the r wanted; Halko et al., section 4.2, take 5 to 10.
_OVERSAMPLING = 10


class Factors(NamedTuple):
    """A matrix B A, given by its two factors.

    Attributes:
        B: [N, r].
        A: [r, K].
    """

    B: Tensor
    A: Tensor

    @property
    def r(self) -> int:
        """The number of columns of B and of rows of A; the rank of B A is at most this."""
        return self.A.shape[0]

    @unaffected_by_autocast
    def product(self) -> Tensor:
        """B A [N, K]."""
        return self.B @ self.A

    def linear(self, x: Tensor, b: Tensor | None = None) -> Tensor:
        """y = (x Aᵀ) Bᵀ + b, with r (N + K) multiplications for a row of x instead of N K.

        Args:
            x: [..., K].
            b: [N] or None.

        Returns:
            [..., N].
        """
        return torch.nn.functional.linear(x @ self.A.t(), self.B, b)


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


class Spectrum(NamedTuple):
    """A singular value decomposition W = U diag(S) Vᵀ, with S in descending order.

    Attributes:
        U: [N, k], orthonormal columns.
        S: [k].
        Vt: [k, K], orthonormal rows.
    """

    U: Tensor
    S: Tensor
    Vt: Tensor

    def factors(self, r: int) -> Factors:
        """The B [N, r] and A [r, K] nearest to W; each contains the square roots of the singular values.

        Raises:
            TypeError: If r is not an int.
            ValueError: If r is not in 1 ... k.
        """
        _check_kept(r, self.S.shape[0])
        root = self.S[:r].sqrt()
        return Factors(self.U[:, :r] * root, root[:, None] * self.Vt[:r])


def decompose(W: Tensor) -> Spectrum:
    """The singular value decomposition of W [N, K], with k = min(N, K).

    Raises:
        TypeError: If W is not a floating-point tensor.
        ValueError: If W is not a matrix with entries, or not finite.
    """
    return Spectrum(*torch.linalg.svd(_checked(W), full_matrices=False))


@unaffected_by_autocast
def decompose_product(B: Tensor, A: Tensor) -> Spectrum:
    """The singular value decomposition of B A [N, K], with k = min(N, r, K), without forming B A.

    With B = Q_B R_B and Aᵀ = Q_A R_A, only R_B R_Aᵀ has to be decomposed, which is at most [r, r].

    Args:
        B: [N, r].
        A: [r, K].

    Raises:
        TypeError: If one is not a floating-point tensor.
        ValueError: If one is not a matrix with entries, or not finite.
    """
    (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(_checked(B, "B")), torch.linalg.qr(_checked(A, "A").t())
    U, S, Vt = torch.linalg.svd(R_B @ R_A.t(), full_matrices=False)
    return Spectrum(Q_B @ U, S, Vt @ Q_A.t())


@unaffected_by_autocast
def decompose_randomized(W: Tensor, r: int, *, iterations: int = 2) -> Spectrum:
    """The first r singular values and vectors of a large W [N, K], approximated by random projection.

    It costs about r (1 + iterations) / min(N, K) of `decompose`, and is as accurate if the singular values
    after the first r fall fast. It draws from torch's generator.

    Args:
        W: [N, K].
        r: The number of singular values and vectors; k = r.
        iterations: Subspace iterations; each makes it more accurate if the singular values fall slowly.

    Raises:
        TypeError: If W is not a floating-point tensor, or r or `iterations` not an int.
        ValueError: If W is not a matrix with entries, or not finite, r is not in 1 ... min(N, K), or
            `iterations` is negative.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 5.1.
    """
    wide = _checked(W)
    _check_kept(r, min(W.shape))
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int >= 0; got {iterations!r}")
    if iterations < 0:
        raise ValueError(f"iterations must be an int >= 0; got {iterations}")
    drawn = min(r + _OVERSAMPLING, *W.shape)
    U, S, V = torch.svd_lowrank(wide, q=drawn, niter=iterations)
    return Spectrum(U[:, :r], S[:r], V[:, :r].t())


def factorize(W: Tensor, r: int) -> Factors:
    """The B [N, r] and A [r, K] whose product is nearest to W.

    Raises:
        TypeError: As by `decompose`, or if r is not an int.
        ValueError: As by `decompose`, or if r is not in 1 ... min(N, K).
    """
    _check_kept(r, min(_checked(W).shape))
    return decompose(W).factors(r)


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
    return numerical_rank(torch.linalg.svdvals(_checked(W)), W)


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


def _check_kept(r: object, most: int) -> None:
    if check_rank(r) > most:
        raise ValueError(f"r must be at most {most}, the smaller side of the matrix; got {r}")


def _checked(W: object, name: str = "W") -> Tensor:
    """W in the dtype to compute in; TypeError or ValueError if it is not a finite matrix."""
    if not isinstance(W, Tensor) or not W.is_floating_point():
        kind = W.dtype if isinstance(W, Tensor) else type(W).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {kind}")
    if W.dim() != 2 or W.numel() == 0:
        raise ValueError(f"{name} must be a matrix with entries; got shape {list(W.shape)}")
    if not W.isfinite().all():
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    return W.detach().to(accumulation_dtype(W.dtype))
