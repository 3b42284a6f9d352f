"""Singular value decompositions of matrices, and the two factors nearest to one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.arguments import check_rank, check_size
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
    return Spectrum(*torch.linalg.svd(checked(W), full_matrices=False))


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
    (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(checked(B, "B")), torch.linalg.qr(checked(A, "A").t())
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
    wide = checked(W)
    _check_kept(r, min(W.shape))
    check_size("iterations", iterations)
    drawn = min(r + _OVERSAMPLING, *W.shape)
    U, S, V = torch.svd_lowrank(wide, q=drawn, niter=iterations)
    return Spectrum(U[:, :r], S[:r], V[:, :r].t())


def factorize(W: Tensor, r: int) -> Factors:
    """The B [N, r] and A [r, K] whose product is nearest to W.

    Raises:
        TypeError: As by `decompose`, or if r is not an int.
        ValueError: As by `decompose`, or if r is not in 1 ... min(N, K).
    """
    _check_kept(r, min(checked(W).shape))
    return decompose(W).factors(r)


def _check_kept(r: object, most: int) -> None:
    if check_rank(r) > most:
        raise ValueError(f"r must be at most {most}, the smaller side of the matrix; got {r}")


def checked(W: object, name: str = "W") -> Tensor:
    """W in the dtype to compute in; TypeError or ValueError if it is not a finite matrix."""
    if not isinstance(W, Tensor) or not W.is_floating_point():
        kind = W.dtype if isinstance(W, Tensor) else type(W).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {kind}")
    if W.dim() != 2 or W.numel() == 0:
        raise ValueError(f"{name} must be a matrix with entries; got shape {list(W.shape)}")
    if not W.isfinite().all():
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    return W.detach().to(accumulation_dtype(W.dtype))
