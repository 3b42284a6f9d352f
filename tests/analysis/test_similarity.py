"""How alike updates are, against numpy written out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, add_adapter
from fastlora.analysis import adapter_similarity, subspace_similarity
from fastlora.layer.adapter import adapters_of
from fastlora.measuring.errors import assert_within_budget
from tests.models import adapted, mlp


def by_hand(first, second):
    """φ(i, j) entry by entry, as the paper writes it."""
    U = np.linalg.svd(first, full_matrices=False)[2].T
    V = np.linalg.svd(second, full_matrices=False)[2].T
    table = np.zeros((U.shape[1], V.shape[1]), dtype=first.dtype)
    for i in range(1, U.shape[1] + 1):
        for j in range(1, V.shape[1] + 1):
            table[i - 1, j - 1] = (np.abs(U[:, :i].T @ V[:, :j]) ** 2).sum() / min(i, j)
    return torch.from_numpy(table)


@pytest.mark.parametrize(("r1", "r2"), [(3, 5), (5, 3), (1, 1), (4, 11)])
def test_each_pair_of_ranks_is_compared_as_by_hand(r1, r2):
    first, second = torch.randn(r1, 9), torch.randn(r2, 9)
    truth = by_hand(first.double().numpy(), second.double().numpy())
    found = subspace_similarity(first, second)
    assert found.shape == (r1, min(r2, 9))
    # Two decompositions of rows of 9 lie behind each entry.
    extra = 9 * torch.finfo(found.dtype).eps
    assert_within_budget("φ", found, by_hand(first.numpy(), second.numpy()), truth, extra=extra)


def test_the_same_span_is_wholly_alike_and_an_orthogonal_one_not_at_all():
    A = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    scaled = A[:3] * torch.tensor([[3.0], [2.0], [1.0]])
    same = subspace_similarity(scaled, torch.cat([scaled * 7, 1e-3 * A[3:5]]))
    # Of i and j directions in the same order, the smaller span lies in the larger.
    eps = torch.finfo(same.dtype).eps
    assert_within_budget("1", same, torch.ones(3, 5), torch.ones(3, 5, dtype=torch.float64), extra=10 * eps)
    apart = subspace_similarity(scaled, A[5:])
    assert float(apart.max()) <= torch.finfo(apart.dtype).eps


def test_two_adapters_of_a_model_are_compared_where_both_have_part():
    model = adapted(mlp(), r=2)
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["0"]))
    found = adapter_similarity(model, "default", "fr")
    assert found.keys() == {"0"}
    own = adapters_of(model[0])
    truth = by_hand(*(own[name][0].detach().double().numpy() for name in ("default", "fr")))
    torchs = by_hand(*(own[name][0].detach().numpy() for name in ("default", "fr")))
    assert_within_budget("φ", found["0"], torchs, truth)
    assert not found["0"].requires_grad


def test_what_cannot_be_compared_is_named():
    model = adapted(mlp(), target_modules=["0"])
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["2"]))
    with pytest.raises(ValueError, match="'default' and 'fr' share none"):
        adapter_similarity(model, "default", "fr")
    with pytest.raises(ValueError, match=r"adapter must be one of the model's .*got 'de'"):
        adapter_similarity(model, "default", "de")
    with pytest.raises(ValueError, match="same number of columns; got 4 and 5"):
        subspace_similarity(torch.randn(2, 4), torch.randn(2, 5))
    with pytest.raises(TypeError, match="W must be a floating-point tensor"):
        subspace_similarity(nn.Linear(2, 2), torch.randn(2, 5))
