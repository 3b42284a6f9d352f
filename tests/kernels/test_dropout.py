"""The mask of the kernels: a function of seed, row and column, kept at the rate asked for."""

import math

import pytest
import torch
import triton
import triton.language as tl

from fastlora_kernels.dropout import keep_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def read_mask(seed_ptr, out_ptr, threshold, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    keep = keep_mask(tl.load(seed_ptr), threshold, row, column, ROWS, COLUMNS)
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + offsets, keep.to(tl.int32))


def mask(seed, threshold, rows, columns, row=0, column=0):
    out = torch.empty(rows, columns, device=DEVICE, dtype=torch.int32)
    read_mask[(1,)](
        seed_ptr=torch.tensor([seed], device=DEVICE),
        out_ptr=out,
        threshold=threshold,
        row=row,
        column=column,
        ROWS=rows,
        COLUMNS=columns,
    )
    return out.bool()


def test_a_part_of_the_mask_is_the_same_whatever_the_tile():
    whole = mask(2**61 + 5, 6554, 64, 128)
    assert torch.equal(mask(2**61 + 5, 6554, 32, 16, row=32, column=104), whole[32:, 104:120])


def test_seeds_that_differ_in_high_or_low_bits_give_other_masks():
    masks = [mask(seed, 2**15, 64, 64) for seed in (1, 2, 1 + 2**40)]
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            assert_rate((one == other).float().mean().item(), 0.5, one.numel())


@pytest.mark.parametrize("threshold", [655, 6554, 2**15, 60_000])
def test_the_rate_is_the_one_asked_for(threshold):
    keep = mask(77, threshold, 128, 256)
    assert_rate(keep.float().mean().item(), 1 - threshold / 2**16, keep.numel())


def test_columns_that_share_a_call_are_independent():
    keep = mask(78, 2**15, 128, 256).view(128, 32, 8)
    for lane in range(1, 8):
        agreement = (keep[..., 0] == keep[..., lane]).float().mean().item()
        assert_rate(agreement, 0.5, keep[..., 0].numel())


def assert_rate(rate, expected, count):
    """Within five standard deviations of the binomial, which chance misses once in 1.7 million."""
    assert abs(rate - expected) < 5 * math.sqrt(expected * (1 - expected) / count)
