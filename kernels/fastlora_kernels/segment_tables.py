"""What a program of a launch with runs looks up: its tile, its segment, and the adapter of that.

    tiles      [tiles, 5] int32: the number of W, the first row, the row after the last, the first segment,
               the segment after the last
    segments   [segments, 5] int32: the number of the adapter, the first row, the row after the last, the
               tile, the first row of its run; None where each tile is one segment, with W's number
    ranks      [adapters + 1, 3] int32: how many ranks lie before those of this adapter, its rank, and the
               threshold of its dropout; None where all adapters are alike
    scales     [adapters + 1, 2] fp32: s, and the factor of what dropout keeps; None with `ranks`

The number of operands, as the number of W or of an adapter, means none: 0 x, or rank 0. A tile without rows
computes nothing. A [r, K] and B [N, r] of all adapters lie one after the other. Rows of p and q have the
rank's length, and the rows of a run lie together, from where they would be if every rank were the largest.
"""

import triton
import triton.language as tl

_FIELDS: tl.constexpr = tl.constexpr(5)


@triton.jit
def load_tile_entry(tiles_ptr, tile):
    """(the number of W, first row, row after the last) of a tile."""
    entry_ptr = tiles_ptr + tile * _FIELDS
    return tl.load(entry_ptr), tl.load(entry_ptr + 1), tl.load(entry_ptr + 2)


@triton.jit
def segments_of(tiles_ptr, tile):
    """(first segment, segment after the last) of a tile."""
    entry_ptr = tiles_ptr + tile * _FIELDS
    return tl.load(entry_ptr + 3), tl.load(entry_ptr + 4)


@triton.jit
def load_segment(tiles_ptr, segments_ptr, segment):
    """(the adapter's number, first row, row after the last, tile, first row of its run)."""
    if segments_ptr is None:
        operand, begin, end = load_tile_entry(tiles_ptr, segment)
        found = (operand, begin, end, segment, begin)
    else:
        entry_ptr = segments_ptr + segment * _FIELDS
        found = (
            tl.load(entry_ptr),
            tl.load(entry_ptr + 1),
            tl.load(entry_ptr + 2),
            tl.load(entry_ptr + 3),
            tl.load(entry_ptr + 4),
        )
    return found


@triton.jit
def load_adapter(ranks_ptr, scales_ptr, operand, alike):
    """(ranks before it, in int64, rank, threshold, kept_scale, s) of an adapter.

    `alike` is (number of operands, largest rank, threshold, kept_scale, s), as they are where all are alike.
    """
    if ranks_ptr is None:
        num_operands, r, threshold, kept_scale, s = alike
        found = (operand.to(tl.int64) * r, tl.where(operand < num_operands, r, 0), threshold, kept_scale, s)
    else:
        rank_ptr, scale_ptr = ranks_ptr + operand * 3, scales_ptr + operand * 2
        found = (
            tl.load(rank_ptr).to(tl.int64),
            tl.load(rank_ptr + 1),
            tl.load(rank_ptr + 2),
            tl.load(scale_ptr + 1),
            tl.load(scale_ptr),
        )
    return found


@triton.jit
def weights_of(W, operand, N):
    """(the matrix argument of one operand's W, its first row there).

    W is a descriptor of [E * N, K], or (pointer, strides of E, N and K).
    """
    if isinstance(W, tl.tensor_descriptor):
        found = (W, operand * N)
    else:
        W_ptr, stride_e, stride_n, stride_k = W
        found = ((W_ptr + operand.to(tl.int64) * stride_e, stride_n, stride_k), operand * 0)
    return found
