"""HQQ unpacked: W = (q - zero) * scale, each step rounded to the dtype of scale and zero."""

import triton
import triton.language as tl

WORDS = 512  # a program: each field of its words is one run of entries


@triton.jit
def dequantize_kernel(
    words_ptr,  # [num_words] uint8, or int32 with ten fields
    scale_ptr,  # [R], [C] or [1]
    zero_ptr,  # the same
    out_ptr,  # [num_entries], the entries of q [R, C] row by row
    num_words,
    num_entries,
    columns,
    rows_apart,  # rows of q between two fields of a word
    GROUPS: tl.constexpr,  # "rows" of q, "columns", or "all": what has a scale of its own
    BITS: tl.constexpr,
    FIELDS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """out = W, flat: field f of word w, from the highest on, is entry f * num_words + w."""
    dtype: tl.constexpr = scale_ptr.dtype.element_ty
    # N * K may exceed 2^31, so the first word is a 64-bit scalar, and the rest are counted from its row.
    first = tl.program_id(0).to(tl.int64) * WORDS
    word = first + tl.arange(0, WORDS)
    along = (first % columns).to(tl.int32) + tl.arange(0, WORDS)
    row = first // columns + along // columns
    packed = tl.load(words_ptr + word, mask=word < num_words, other=0).to(tl.int32)
    for field in tl.static_range(FIELDS):
        q = (packed >> BITS * (FIELDS - 1 - field)) & ((1 << BITS) - 1)
        entry = word + tl.cast(num_words, tl.int64) * field
        # In 3 bits the last rows of q are padding.
        inside = (word < num_words) & (entry < num_entries)
        if GROUPS == "rows":
            group = row + rows_apart * field
        elif GROUPS == "columns":
            group = along % columns
        else:
            group = along * 0
        zero = tl.load(zero_ptr + group, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + group, mask=inside, other=0.0).to(tl.float32)
        moved = (q.to(tl.float32) - zero).to(dtype).to(tl.float32)
        value = (moved * scale).to(dtype).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + entry, value, mask=inside)
