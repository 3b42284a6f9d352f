"""Loads, stores, copies and atomics: what they move, and what they may not touch."""

import numpy as np
import pytest

from tests.ptx.faults import Fault
from tests.ptx.small_kernels import New, run_kernel

AT_THREAD = "mad.wide.u32 %rd20, %r0, 4, %rd0; mad.wide.u32 %rd21, %r0, 4, %rd1;"


def numbers(count, start=0):
    return np.arange(start, start + count, dtype=np.uint32)


def test_what_is_loaded_is_stored():
    body = AT_THREAD + "ld.global.b32 %r2, [%rd20]; st.global.b32 [%rd21], %r2;"
    assert run_kernel(body, numbers(32, 5), New(numbers(32)))[1].tolist() == list(range(5, 37))


def test_vectors_go_to_neighbours_in_order():
    body = """
    mad.wide.u32 %rd20, %r0, 16, %rd0; mad.wide.u32 %rd21, %r0, 16, %rd1;
    ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [ %rd20 + 0 ];
    st.global.v2.b32 [%rd21], {%r5, %r4}; st.global.v2.b32 [%rd21+8], {%r3, %r2};
    """
    found = run_kernel(body, numbers(128), New(numbers(128)))[1]
    assert found[:8].tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_lanes_without_their_predicate_touch_nothing():
    body = AT_THREAD + "setp.lt.u32 %p1, %r0, 3; @%p1 st.global.b32 [%rd20], %r0;"
    assert run_kernel(body, numbers(3, 50), numbers(1))[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ld.global.b32 %r2, [%rd0+128];", "load out of bounds of global"),
        ("st.global.b32 [%rd0+-4], %r0;", "store out of bounds of global"),
        ("ld.global.b32 %r2, [%rd0+2];", "misaligned"),
        ("ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd0+8];", "misaligned"),
        ("ld.global.b32 %r2, [%rd1];", "nobody wrote"),
        ("ld.shared.b32 %r2, [global_smem];", "load of shared memory that nobody wrote"),
        ("st.shared.b32 [global_smem+4096], %r0;", "store out of bounds of shared"),
        ("atom.global.gpu.relaxed.add.u32 %r2, [%rd1], 1;", "nobody wrote"),
        ("cp.async.ca.shared.global [%r0], [%rd0], 0x4, 2;", "part of its bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_a_wrong_access_is_a_fault(line, message):
    with pytest.raises(Fault, match=message):
        run_kernel(line, numbers(32), New(numbers(32)))


def test_an_atomic_gives_each_thread_another_number():
    body = AT_THREAD + "atom.global.gpu.relaxed.add.u32 %r2, [ %rd0 + 0 ], 1; st.global.b32 [%rd21+0], %r2;"
    counter, found = run_kernel(body, numbers(1), New(numbers(32)))
    assert counter[0] == 32
    assert sorted(found.tolist()) == list(range(32))


def test_a_copy_fills_with_zeros_what_its_source_does_not_give():
    body = (
        AT_THREAD
        + """
    shl.b32 %r2, %r0, 2; setp.lt.u32 %p1, %r0, 5; selp.b32 %r3, 4, 0, %p1;
    cp.async.ca.shared.global [ %r2 + 0 ], [ %rd20 + 0 ], 0x4, %r3;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.b32 %r4, [%r2]; st.global.b32 [%rd21], %r4;
    """
    )
    assert run_kernel(body, numbers(5, 7), New(numbers(32)))[1].tolist() == [7, 8, 9, 10, 11] + [0] * 27


def test_bytes_are_moved_alone():
    body = """
    mov.b16 %rs1, 7; mov.b16 %rs2, 9;
    st.shared.v2.b8 [global_smem], {%rs1, %rs2};
    ld.shared.b8 %rs3, [global_smem+1]; cvt.u32.u16 %r2, %rs3; st.global.b32 [%rd0], %r2;
    """
    assert run_kernel(body, New(numbers(1)))[0].tolist() == [9]
