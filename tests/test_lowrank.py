"""Low-rank factors: the nearest there are, what they save, and how low a rank is."""

import math

import numpy as np
import pytest
import torch

from fastlora import lowrank
from fastlora.measuring.errors import assert_within_budget


def deficient(N, K, r):
    """An [N, K] matrix of rank r."""
    return torch.randn(N, r, dtype=torch.float64) @ torch.randn(r, K, dtype=torch.float64)


@pytest.mark.parametrize(("N", "K", "r"), [(10, 10, 2), (7, 13, 1), (13, 7, 7), (5, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_rank_of_a_product_is_found_through_its_dtypes_rounding(N, K, r, dtype):
    # Equal singular values, far above the rounding; those of random factors may fall into bf16's.
    left, right = (torch.linalg.qr(torch.randn(size, r, dtype=torch.float64)).Q for size in (N, K))
    assert lowrank.matrix_rank((left @ right.t()).to(dtype)) == r


def test_the_rank_is_numpys():
    W = deficient(9, 12, 4).float()
    assert lowrank.matrix_rank(W) == np.linalg.matrix_rank(W.numpy())
    assert lowrank.matrix_rank(torch.zeros(3, 4)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_factors_of_the_true_rank_rebuild_the_matrix(dtype):
    W = deficient(11, 17, 3).to(dtype)
    factors = lowrank.factorize(W, 11)
    U, S, Vt = torch.linalg.svd(W.to(factors.A.dtype), full_matrices=False)
    assert_within_budget("B A", factors.product(), U * S @ Vt, W)
    exact = deficient(11, 17, 3)
    assert_within_budget("B A", lowrank.factorize(exact, 3).product(), exact.float(), exact)


def test_the_root_of_each_singular_value_goes_to_either_side():
    factors = lowrank.factorize(torch.diag(torch.tensor([4.0, 9.0, 1.0])), 2)
    assert torch.equal(factors.B.norm(dim=0), torch.tensor([3.0, 2.0]))
    assert torch.equal(factors.A.norm(dim=1), torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("r", [1, 3, 6])
def test_the_error_is_the_least_that_any_pair_of_that_rank_has(r):
    W = torch.randn(8, 6, dtype=torch.float64)
    S = torch.linalg.svdvals(W)
    error = lowrank.reconstruction_error(W, lowrank.factorize(W, r))
    least = lowrank.optimal_error(S, r)
    rounding = max(W.shape) * torch.finfo(W.dtype).eps * float(S[0])
    assert abs(error - least) <= rounding
    best = lowrank.factorize(W, r)
    for scale in (1.0, 1e-3):
        for _ in range(20):
            near = lowrank.Factors(
                best.B + scale * torch.randn_like(best.B), best.A + scale * torch.randn_like(best.A)
            )
            # For a given A, least squares gives the best B: no pair through this A comes nearer.
            fitted = lowrank.Factors(torch.linalg.lstsq(near.A.t(), W.t()).solution.t(), near.A)
            assert lowrank.reconstruction_error(W, near) >= least - rounding
            assert lowrank.reconstruction_error(W, fitted) >= least - rounding


@pytest.mark.parametrize(
    ("share", "r"), [(0.1, 1), (0.64, 1), (0.640001, 2), (0.99, 2), (0.999999, 3), (1.0, 3)]
)
def test_as_few_ranks_are_kept_as_hold_the_share_of_the_energy(share, r):
    # Squares: 64, 35, 1 of 100; exact in fp64 once squared by hand.
    S = torch.tensor([64.0, 35.0, 1.0, 0.0], dtype=torch.float64).sqrt()
    assert lowrank.rank_for_energy(S * 4, share) == r


def test_factors_by_energy_keep_that_share_and_one_rank_less_does_not():
    W = torch.randn(12, 9, dtype=torch.float64)
    factors = lowrank.factorize_energy(W, 0.8)
    lost = lowrank.reconstruction_error(W, factors) ** 2 / float(W.norm()) ** 2
    assert (
        lost <= 0.2 < (lowrank.optimal_error(torch.linalg.svdvals(W), factors.r - 1) / float(W.norm())) ** 2
    )


def test_the_energy_of_nothing_is_kept_by_one_rank():
    assert lowrank.rank_for_energy(torch.zeros(3), 0.5) == 1


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((10, 10, 2), (100, 40, 40.0)),
        ((1000, 5000, 1), (5_000_000, 6_000, 0.12)),
        ((3, 3, 3), (9, 18, 200.0)),
    ],
)
def test_parameters_are_counted(sizes, counts):
    assert lowrank.parameter_counts(*sizes) == counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_the_factors_give_the_y_of_the_matrix(dtype, bias):
    W, x = deficient(5, 11, 2), torch.randn(3, 2, 11, dtype=torch.float64)
    b = torch.randn(5, dtype=torch.float64) if bias else None
    low = [None if t is None else t.to(dtype) for t in (x, W, b)]
    y = lowrank.factorize(low[1], 2).linear(low[0], low[2])
    truth = torch.nn.functional.linear(x, W, b)
    # What torch's own decomposition makes of W, all singular values kept.
    U, S, Vt = torch.linalg.svd(low[1])
    rebuilt = torch.nn.functional.linear(low[0], U * S @ Vt[:5], low[2])
    assert_within_budget("y", y, rebuilt, truth)


def test_a_products_decomposition_is_that_of_the_whole_matrix():
    B, A = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    thin, whole = lowrank.decompose_product(B, A), lowrank.decompose(B @ A)
    assert_within_budget("S", thin.S, whole.S[:4].float().double(), whole.S[:4])
    assert_within_budget("B A", thin.U * thin.S @ thin.Vt, (B @ A).float(), B @ A)
    assert thin.U.shape == (9, 4)
    assert thin.Vt.shape == (4, 7)


@pytest.mark.parametrize(("N", "K", "r"), [(3, 8, 5), (8, 3, 5)])
def test_a_product_wider_than_its_outer_sizes_has_no_more_singular_values_than_they_allow(N, K, r):
    assert lowrank.decompose_product(torch.randn(N, r), torch.randn(r, K)).S.shape == (3,)


def test_the_randomized_decomposition_finds_a_low_rank_exactly():
    W = deficient(60, 90, 4)
    found = lowrank.decompose_randomized(W, 4)
    assert_within_budget(
        "S", found.S, torch.linalg.svdvals(W)[:4].float().double(), torch.linalg.svdvals(W)[:4]
    )
    assert_within_budget("B A", found.factors(4).product(), W.float(), W)


def test_more_iterations_bring_a_flat_spectrum_nearer_to_the_optimum():
    W = torch.randn(80, 70, dtype=torch.float64)
    least = lowrank.optimal_error(torch.linalg.svdvals(W), 5)
    errors = [
        lowrank.reconstruction_error(W, lowrank.decompose_randomized(W, 5, iterations=n).factors(5))
        for n in (0, 8)
    ]
    assert least <= errors[1] < errors[0]


def test_a_matrix_smaller_than_what_is_drawn_is_decomposed_all_the_same():
    W = torch.randn(3, 5, dtype=torch.float64)
    assert_within_budget("W", lowrank.decompose_randomized(W, 3).factors(3).product(), W.float(), W)


W = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lowrank.factorize(W, 0), ValueError, "r must be an int >= 1; got 0"),
        (lambda: lowrank.factorize(W, 3), ValueError, "r must be at most 2, the smaller side.*got 3"),
        (lambda: lowrank.factorize(W, 1.5), TypeError, "r must be an int >= 1; got 1.5"),
        (lambda: lowrank.factorize([[1.0]], 1), TypeError, "W must be a floating-point tensor; got list"),
        (lambda: lowrank.matrix_rank(W.int()), TypeError, "W must be .*; got torch.int32"),
        (lambda: lowrank.decompose(W[0]), ValueError, r"W must be a matrix with entries; got shape \[3\]"),
        (lambda: lowrank.decompose(W[:0]), ValueError, r"W must be a matrix .*shape \[0, 3\]"),
        (lambda: lowrank.decompose(W * math.inf), ValueError, "W must be finite"),
        (lambda: lowrank.decompose_product(W, W.t() / 0), ValueError, "A must be finite"),
        (lambda: lowrank.factorize_energy(W, 0), ValueError, r"share must be a number in \(0, 1\]; got 0"),
        (lambda: lowrank.factorize_energy(W, 1.01), ValueError, r"share must be a number .*got 1.01"),
        (lambda: lowrank.factorize_energy(W, "all"), TypeError, r"share must be a number.*'all'"),
        (lambda: lowrank.decompose_randomized(W, 3), ValueError, "r must be at most 2"),
        (lambda: lowrank.decompose_randomized(W, 1, iterations=-1), ValueError, "iterations must .*got -1"),
        (lambda: lowrank.decompose_randomized(W, 1, iterations=2.0), TypeError, "iterations must .*2.0"),
        (lambda: lowrank.parameter_counts(3, 0, 1), ValueError, "K must be an int >= 1; got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_decomposed_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
