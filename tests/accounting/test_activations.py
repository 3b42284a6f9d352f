"""The bytes that a forward pass saves for its backward pass."""

import pytest
import torch
from torch.nn import functional as F

from bench.cases import Case
from bench.layer import layer_saved_bytes
from bench.methods import FASTLORA, FROZEN, FULL, PEFT
from fastlora.accounting.activations import saved_bytes

CPU = torch.device("cpu")
M, K, N, R = 48, 40, 56, 4
MIXED = Case(M, K, N, R, torch.bfloat16, torch.float32, dropout=0.1)


def test_what_exists_anyway_does_not_count():
    W, x = torch.randn(N, K), torch.randn(M, K, requires_grad=True)
    assert saved_bytes(lambda: F.linear(x, W), [W]) == 0
    assert saved_bytes(lambda: F.linear(x, W), []) == W.nbytes


def test_memory_saved_twice_counts_once_and_a_view_counts_whole():
    x = torch.randn(10, K, requires_grad=True)
    top = x[:2]
    assert saved_bytes(lambda: top * top, []) == x.nbytes


def test_nothing_is_saved_where_no_gradient_is_asked_for():
    x, y = torch.randn(M, K), torch.randn(M, K)
    assert saved_bytes(lambda: x * y, []) == 0


def test_what_is_dropped_before_the_pass_is_over_is_not_kept():
    x = torch.randn(M, K, requires_grad=True)

    def forward():
        x.exp()  # saves its result, and is dropped with it
        return x.exp()

    assert saved_bytes(forward, []) == x.nbytes


def test_a_frozen_layer_saves_nothing_and_a_trained_one_its_input():
    case = MIXED._replace(dropout=0.0)
    assert layer_saved_bytes(FROZEN, case, CPU) == 0
    assert layer_saved_bytes(FULL, case, CPU) == 2 * M * K


def test_fastlora_saves_the_input_the_rank_r_product_and_a_seed():
    assert layer_saved_bytes(FASTLORA, MIXED, CPU) == 2 * M * K + 4 * M * R + 8
    assert layer_saved_bytes(FASTLORA, MIXED._replace(dropout=0.0), CPU) == 2 * M * K + 4 * M * R


def test_peft_saves_three_times_as_much_for_wider_adapters_and_dropout():
    pytest.importorskip("peft")
    large = MIXED._replace(M=512, K=1024, N=1024, r=16)
    assert layer_saved_bytes(PEFT, large, CPU) > 3 * layer_saved_bytes(FASTLORA, large, CPU)
