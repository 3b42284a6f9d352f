"""Each kind of race, planted in a few lines and found; its correct twin is clean, in every order tried."""

import numpy as np
import pytest

from tests.ptx.faults import Fault
from tests.ptx.planted import SEEDS, WAIT_FOR_ONE, assert_found_without, words
from tests.ptx.small_kernels import New, run_kernel

NEIGHBOUR = """
shl.b32 %r2, %r0, 2; xor.b32 %r3, %r2, 128;
st.shared.b32 [%r2], %r0;
bar.sync 0;
ld.shared.b32 %r4, [%r3];
mad.wide.u32 %rd20, %r0, 4, %rd0; st.global.b32 [%rd20], %r4;
"""


def test_reading_what_another_warp_stores_takes_a_barrier():
    message = "race: load of shared memory|nobody wrote"
    assert_found_without("bar.sync 0;", NEIGHBOUR, New(words(64)), message=message, num_warps=2)


def test_storing_over_what_another_warp_reads_takes_a_barrier():
    body = NEIGHBOUR + "bar.sync 0; st.shared.b32 [%r2], %r0;"
    # The same bytes again, so that only the read is in the way.
    body = body.replace("st.shared.b32 [%r2], %r0;", "st.shared.b32 [%r2], 5;", 1)
    assert_found_without(
        "bar.sync 0; st", body, New(words(64)), message="races with a load|race: load", by="st", num_warps=2
    )


def test_two_warps_may_store_the_same_bytes_but_no_others():
    body = "st.shared.b32 [global_smem], {};"
    for seed in SEEDS:
        run_kernel(body.format("7"), num_warps=2, seed=seed)
        with pytest.raises(Fault, match="race: two stores to shared"):
            run_kernel(body.format("%r0"), num_warps=2, seed=seed)


def test_two_warps_may_not_store_to_one_place_of_global_memory():
    for seed in SEEDS:
        with pytest.raises(Fault, match="race: two stores to global"):
            run_kernel("st.global.b32 [%rd0], 7;", words(1), num_warps=2, seed=seed)


def test_a_named_barrier_orders_those_who_meet_at_it():
    assert_found_without(
        "bar.sync 1, 64;",
        NEIGHBOUR.replace("bar.sync 0;", "bar.sync 1, 64;"),
        New(words(64)),
        message="race: load of shared memory|nobody wrote",
        num_warps=2,
    )


def test_who_arrives_at_a_barrier_is_heard_by_who_waits():
    body = """
    setp.lt.u32 %p1, %r0, 32;
    @%p1 bra $STORE;
    bar.sync 1, 64;
    ld.shared.b32 %r4, [global_smem]; st.global.b32 [%rd0], %r4;
    bra $END;
$STORE:
    st.shared.b32 [global_smem], 5;
    bar.arrive 1, 64;
$END:
    """
    for seed in SEEDS:
        assert run_kernel(body, New(words(1)), num_warps=2, seed=seed)[0].tolist() == [5]
    late = body.replace(
        "st.shared.b32 [global_smem], 5;\n    bar.arrive 1, 64;",
        "bar.arrive 1, 64; st.shared.b32 [global_smem], 5;",
    )
    for seed in SEEDS:
        with pytest.raises(Fault, match=r"race|nobody wrote"):
            run_kernel(late, New(words(1)), num_warps=2, seed=seed)


# CTA 0 stores and publishes, CTA 1 waits and loads; one warp each.
HAND_OVER = f"""
setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r1, 1;
mad.wide.u32 %rd20, %r0, 4, %rd0; mad.wide.u32 %rd21, %r0, 4, %rd2;
@%p2 bra $WAIT;
st.global.b32 [%rd20], %r0;
@%p1 red.global.gpu.release.add.u32 [ %rd1 + 0 ], 1;
bra $END;
{WAIT_FOR_ONE}ld.global.cg.b32 %r6, [%rd20];
st.global.b32 [%rd21], %r6;
$END:
"""


@pytest.mark.parametrize(
    ("line", "by"),
    [
        ("red.global.gpu.release.add", "red.global.gpu.relaxed.add"),
        ("red.global.gpu.release.add", "red.global.cta.release.add"),
        ("st.global.b32 [%rd20], %r0;", ""),
    ],
)
def test_a_hand_over_between_programs_takes_release_acquire_and_the_wait(line, by):
    arrays = New(words(32)), np.zeros(1, np.uint32), New(words(32))
    message = "race: load of global memory|nobody wrote"
    assert_found_without(line, HAND_OVER, *arrays, message=message, by=by, grid=2)


def test_a_hand_over_without_its_wait_is_found_where_the_reader_is_first():
    body = HAND_OVER.replace("@%p3 bra $WAIT;", "")
    found = []
    for seed in range(20):
        try:
            run_kernel(body, New(words(32)), np.zeros(1, np.uint32), New(words(32)), grid=2, seed=seed)
        except Fault as fault:
            found.append(str(fault))
    assert 5 <= len(found) < 20
    assert all("race: load of global memory" in one or "nobody wrote" in one for one in found)


def test_a_hand_over_passes_what_was_stored():
    for seed in SEEDS:
        found = run_kernel(
            HAND_OVER, New(words(32)), np.zeros(1, np.uint32), New(words(32)), grid=2, seed=seed
        )
        assert np.array_equal(found[2], words(32))


def test_publishing_before_the_store_is_found():
    store, publish = "st.global.b32 [%rd20], %r0;", "@%p1 red.global.gpu.release.add.u32 [ %rd1 + 0 ], 1;"
    body = HAND_OVER.replace(store, "").replace(publish, publish + store)
    for seed in SEEDS:
        with pytest.raises(Fault, match=r"race: load of global memory|nobody wrote"):
            run_kernel(body, New(words(32)), np.zeros(1, np.uint32), New(words(32)), grid=2, seed=seed)


COPY = """
shl.b32 %r2, %r0, 2; xor.b32 %r3, %r2, 128; mad.wide.u32 %rd20, %r0, 4, %rd0;
cp.async.ca.shared.global [ %r2 + 0 ], [ %rd20 + 0 ], 0x4;
cp.async.commit_group;
cp.async.wait_group 0;
bar.sync 0;
ld.shared.b32 %r4, [%r3]; mad.wide.u32 %rd21, %r0, 4, %rd1; st.global.b32 [%rd21], %r4;
"""


@pytest.mark.parametrize(
    ("line", "by"),
    [
        ("cp.async.wait_group 0;", ""),
        ("cp.async.wait_group 0;", "cp.async.wait_group 1;"),
        ("cp.async.commit_group;", ""),
        ("bar.sync 0;", ""),
    ],
)
def test_a_copy_is_waited_for_by_groups_and_then_by_a_barrier(line, by):
    message = "race: load of shared memory|nobody wrote"
    assert_found_without(line, COPY, words(64), New(words(64)), message=message, by=by, num_warps=2)


def test_a_wait_for_what_never_comes_is_a_deadlock_with_its_place():
    body = HAND_OVER.replace("@%p1 red.global.gpu.release.add.u32 [ %rd1 + 0 ], 1;", "")
    for seed in SEEDS:
        with pytest.raises(Fault, match=r"deadlock: spins: CTA 1 warp 0 at .*acquire"):
            run_kernel(body, New(words(32)), np.zeros(1, np.uint32), New(words(32)), grid=2, seed=seed)


def test_a_wait_for_who_has_not_started_is_a_deadlock():
    # With one program at a time, the first waits for the second.
    body = HAND_OVER.replace("setp.eq.u32 %p2, %r1, 1;", "setp.eq.u32 %p2, %r1, 0;")
    arrays = New(words(32)), np.zeros(1, np.uint32), New(words(32))
    run_kernel(body, *arrays, grid=2)
    with pytest.raises(Fault, match="deadlock"):
        run_kernel(body, New(words(32)), np.zeros(1, np.uint32), New(words(32)), grid=2, resident=1)


def test_a_barrier_that_not_all_reach_is_a_deadlock():
    with pytest.raises(Fault, match="deadlock: waits at a barrier: CTA 0 warp 0"):
        run_kernel("setp.ge.u32 %p1, %r0, 32; @%p1 bra $END; bar.sync 0;\n$END:\n", num_warps=2)


def test_lanes_that_part_at_a_branch_are_reported():
    with pytest.raises(Fault, match="part at a branch"):
        run_kernel("setp.lt.u32 %p1, %r0, 5; @%p1 bra $END; mov.b32 %r2, 0;\n$END:\n")
