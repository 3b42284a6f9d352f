"""The hand-over of p and q between the multiplying groups, as in `fastlora_kernels.handover`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastlora_kernels.hopper.names import meet


@gluon.jit
def part_of(small_ptr, row, M, r, layout: gl.constexpr, ROWS: gl.constexpr, BLOCK_R: gl.constexpr):
    """(pointers, which exist) of ROWS rows of p or q, [M, r] contiguous."""
    offs_m = row + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    offs_r = gl.arange(0, BLOCK_R, gl.SliceLayout(0, layout))
    inside = (offs_m < M)[:, None] & (offs_r < r)[None, :]
    return small_ptr + offs_m.to(gl.int64)[:, None] * r + offs_r[None, :], inside


@gluon.jit
def publish(counter_ptr):
    """Count one more part as stored; call it after the stores."""
    meet()
    gl.atomic_add(counter_ptr, 1, sem="release")


@gluon.jit
def fence_proxy():
    """Order what this thread wrote or acquired before what the copy engine (TMA) reads from now on.

    In global memory too, which `fence_async_shared` leaves out.
    """
    gl.inline_asm_elementwise(
        "fence.proxy.async; mov.b32 $0, $1;", "=r,r", [gl.to_tensor(0)], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def wait_for(counter_ptr, count):
    """Return once `count` parts are stored; then read them by `load_part`."""
    while gl.atomic_add(counter_ptr, 0, sem="acquire") < count:
        pass
    meet()


@gluon.jit
def store_terms(terms_ptr, part, row, rows, ROWS: gl.constexpr, BLOCK_R: gl.constexpr, TERMS: gl.constexpr):
    """Store [ROWS, BLOCK_R] of p or q as terms of 16 bits: TERMS matrices [rows, BLOCK_R], contiguous.

    They are whole: zero beyond M and r, where part is. The first term is part rounded, a second one what is
    left.
    """
    layout: gl.constexpr = part.type.layout
    pointers, _ = part_of(terms_ptr, row, rows, BLOCK_R, layout, ROWS, BLOCK_R)
    high = part.to(terms_ptr.dtype.element_ty)
    gl.store(pointers, high)
    if TERMS == 2:
        gl.store(pointers + rows * BLOCK_R, (part - high.to(gl.float32)).to(terms_ptr.dtype.element_ty))


@gluon.jit
def load_part(small_ptr, row, M, r, layout: gl.constexpr, ROWS: gl.constexpr, BLOCK_R: gl.constexpr):
    """ROWS rows of p or q, [ROWS, BLOCK_R], zero outside [M, r]; past L1, which is not coherent."""
    pointers, inside = part_of(small_ptr, row, M, r, layout, ROWS, BLOCK_R)
    return gl.load(pointers, mask=inside, other=0.0, cache_modifier=".cg")
