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
def wait_for(counter_ptr, count):
    """Return once `count` parts are stored; then read them by `load_part`."""
    while gl.atomic_add(counter_ptr, 0, sem="acquire") < count:
        pass
    meet()


@gluon.jit
def load_part(small_ptr, row, M, r, layout: gl.constexpr, ROWS: gl.constexpr, BLOCK_R: gl.constexpr):
    """ROWS rows of p or q, [ROWS, BLOCK_R], zero outside [M, r]; past L1, which is not coherent."""
    pointers, inside = part_of(small_ptr, row, M, r, layout, ROWS, BLOCK_R)
    return gl.load(pointers, mask=inside, other=0.0, cache_modifier=".cg")
