"""Low-rank matrices: the rank of a matrix, the two factors nearest to it, and the parameters they save.

    W = U S Vᵀ        B = U_r √S_r  [N, r]        A = √S_r V_rᵀ  [r, K]        ‖W - B A‖² = sum_{i > r} S_i²

No other B and A of rank r come nearer to W (Eckart and Young, 1936). Everything is computed and returned in
fp32, or in fp64 if W is fp64.
"""

from fastlora.lowrank.ranks import (
    ParameterCounts,
    check_share,
    factorize_energy,
    matrix_rank,
    numerical_rank,
    optimal_error,
    parameter_counts,
    rank_for_energy,
    reconstruction_error,
)
from fastlora.lowrank.spectra import (
    Factors,
    Spectrum,
    decompose,
    decompose_product,
    decompose_randomized,
    factorize,
)

__all__ = [
    "Factors",
    "ParameterCounts",
    "Spectrum",
    "check_share",
    "decompose",
    "decompose_product",
    "decompose_randomized",
    "factorize",
    "factorize_energy",
    "matrix_rank",
    "numerical_rank",
    "optimal_error",
    "parameter_counts",
    "rank_for_energy",
    "reconstruction_error",
]
