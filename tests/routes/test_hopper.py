"""The host side of the persistent kernels: their blocks, and copies of A and B for TMA."""

import pytest
import torch

from fastlora.measuring.inputs import random_inputs
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.hopper.blocks import (
    GRADIENT_COLUMNS,
    MOST_RANKS,
    SHARED_MEMORY,
    blocks_for,
)

hopper = pytest.importorskip("fastlora.routes.hopper")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# The interpreter rounds to bf16 by leaving bits out; `tests/ptx` has the terms of bf16 as compiled.
NARROW = BF16 if ON_GPU else FP16


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("r", [1, 16, 32, 64])
def test_shared_memory_holds_the_ring_and_the_tiles_that_wait(r, wide):
    one = blocks_for(min(r, MOST_RANKS[wide]), wide)
    ring = one.stages * one.step * (one.m + one.c + one.terms * one.r)
    assert 2 * (ring + one.buffers * one.m * one.store) < SHARED_MEMORY - 1024
    # A stage more would not fit.
    assert 2 * (ring // one.stages * (one.stages + 1) + one.buffers * one.m * one.store) > SHARED_MEMORY
    # Columns are stored a buffer after the other, in turn, and as many for each half of a tile.
    assert one.c % (one.store * one.buffers) == 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("r", [1, 16, 32, 64])
def test_in_the_place_of_w_there_is_room_for_a_groups_columns_and_the_terms_behind(r, wide):
    one = blocks_for(min(r, MOST_RANKS[wide]), wide)
    assert 2 * one.step == GRADIENT_COLUMNS
    assert one.m * (one.step + one.terms * one.r) <= one.c * one.step
    # The terms begin where a block of theirs would.
    assert one.step % one.r == 0


def operands(K, N, r, dtype, adapter, layout="contiguous"):
    """Of 9 rows; A and B of many magnitudes."""
    o = random_inputs(9, K, N, r, dtype=dtype, adapter_dtype=adapter, device=DEVICE).call(0.0, None)

    def laid(matrix):
        matrix = matrix * 10.0 ** torch.randint(-3, 3, matrix.shape, device=DEVICE).to(adapter)
        if layout == "transposed":
            return matrix.t().contiguous().t()
        if layout == "padded":
            return torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]]
        return matrix[:, :]

    return o._replace(A=laid(o.A.detach()), B=laid(o.B.detach()))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "padded"])
@pytest.mark.parametrize(("K", "N", "r"), [(136, 200, 12), (520, 264, 5), (8, 8, 16), (72, 1032, 1)])
@pytest.mark.parametrize("terms", [(2, 1), (1, 2)])
def test_copies_of_wide_adapters_are_two_terms_with_zeros_around_and_counters_are_zero(
    K, N, r, layout, terms
):
    o = operands(K, N, r, NARROW, FP32, layout)
    about = torch.finfo(NARROW)
    pitch = (16, N) if terms[0] == 2 else (r, num_blocks(N, 64) * 64)
    # More counters than a program's elements, and than elements there are of some matrices.
    small = hopper._small(o, 5000, terms=terms, pitch=pitch)
    assert small.counters.tolist() == [0] * 5000
    for matrix, copy, rows, count in ((o.A, small.A, pitch[0], terms[0]), (o.B, small.B, pitch[1], terms[1])):
        assert copy.dtype == NARROW
        assert hopper.is_aligned(copy)
        assert copy.shape == (count * rows, matrix.shape[1])
        whole = copy._base.unflatten(0, (count, rows))
        part = whole[:, : matrix.shape[0], : matrix.shape[1]]
        assert torch.equal(part[0], matrix.to(NARROW))
        if count == 2:
            error = (part.float().sum(0) - matrix).abs()
            # What is left is at most half of the last bit, and is rounded; or its last bit is fp16's.
            assert (error <= about.eps**2 / 8 * matrix.abs() + about.tiny * about.eps / 2).all()
            assert part[1].any()
        assert not whole[:, matrix.shape[0] :].any()
        assert not whole[..., matrix.shape[1] :].any()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_adapters_of_xs_dtype_are_copied_only_where_their_rows_are_not_on_16_bytes(dtype):
    o = operands(72, 40, 16, dtype, dtype)
    small = hopper._small(o, 6, terms=(1, 1), pitch=(16, 40))
    assert small.A is o.A
    assert small.B is o.B
    assert small.counters.tolist() == [0] * 6
    o = operands(72, 40, 5, dtype, dtype)
    small = hopper._small(o, 6, terms=(1, 1), pitch=(5, 40))
    assert torch.equal(small.A, o.A)
    assert torch.equal(small.B, o.B)
    assert small.B.stride() == (8, 1)
    assert small.counters.tolist() == [0] * 6
