"""Races of the boxes that TMA loads and stores, planted and found; their correct twins are clean."""

import contextlib

import numpy as np
import pytest

from tests.ptx.faults import Fault
from tests.ptx.planted import SEEDS, WAIT_FOR_ONE, assert_found_without, words
from tests.ptx.small_kernels import Matrix, New, run_kernel

BOX = """
setp.eq.u32 %p1, %r0, 0;
@%p1 mbarrier.init.shared::cta.b64 [1024], 1;
bar.sync 0;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [1024], 128;
@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [0], [%rd0, {0, 0}], [1024];
mov.b32 %r5, 0;
$WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [1024], %r5;
@!%p2 bra $WAIT;
and.b32 %r2, %r0, 31; shl.b32 %r2, %r2, 2; ld.shared.b32 %r4, [%r2];
mad.wide.u32 %rd21, %r0, 4, %rd1; st.global.b32 [%rd21], %r4;
bar.sync 0;
@%p1 mbarrier.inval.shared::cta.b64 [1024];
"""


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("@!%p2 bra $WAIT;", "", "race: load of shared|nobody wrote"),
        ("mov.b32 %r5, 0;", "mov.b32 %r5, 1;", "race: load of shared|nobody wrote|deadlock"),
        (
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [1024], 128;",
            "mbarrier.arrive.shared::cta.b64 _, [1024];",
            "race|nobody|deadlock",
        ),
        ("[1024], 128;", "[1024], 64;", "race|deadlock"),
        ("[1024], 1;\nbar.sync 0;", "[1024], 1;", "no mbarrier|race: an mbarrier is used"),
        ("bar.sync 0;\n@%p1 mbarrier.inval", "@%p1 mbarrier.inval", "invalidated while|no mbarrier"),
    ],
)
def test_a_box_is_waited_for_by_phase_and_bytes(line, by, message):
    box = Matrix(words(32).reshape(1, 32), (1, 32))
    assert_found_without(line, BOX, box, New(words(64)), message=message, by=by, num_warps=2)


STORED_BOX = """
shl.b32 %r2, %r0, 2; setp.eq.u32 %p1, %r0, 0;
st.shared.b32 [%r2], %r0;
fence.proxy.async.shared::cta;
bar.sync 0;
@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd0, {0, 0}], [0];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
bar.sync 0;
st.shared.b32 [%r2], 3;
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fence.proxy.async.shared::cta;", "race: load of shared"),
        ("fence.proxy.async.shared::cta;\nbar.sync 0;", "race: load of shared|nobody wrote"),
        ("cp.async.bulk.wait_group 0;", "races with a load"),
        ("bar.sync 0;\nst.shared.b32 [%r2], 3;", "races with a load|race: load of shared"),
    ],
)
def test_a_box_is_stored_after_a_proxy_fence_and_waited_for(line, message):
    by = "st.shared.b32 [%r2], 3;" if "3;" in line else ""
    box = Matrix(np.zeros((2, 32), np.uint32), (2, 32))
    assert_found_without(line, STORED_BOX, box, message=message, by=by, num_warps=2)


def test_a_program_waits_for_its_stored_boxes_before_it_ends():
    body = STORED_BOX.partition("cp.async.bulk.wait_group")[0]
    with pytest.raises(Fault, match="ended while a TMA store read its shared memory"):
        run_kernel(body, Matrix(np.zeros((2, 32), np.uint32), (2, 32)), num_warps=2)


# One program stores a row, at address 256, and another one loads it as a box.
SENT_BOX = """
setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r1, 1;
@%p1 mbarrier.init.shared::cta.b64 [1024], 1;
@%p2 bra $WAIT;
mad.wide.u32 %rd20, %r0, 4, 256; st.global.b32 [%rd20], %r0;
{stored}
@%p1 red.global.gpu.release.add.u32 [ %rd1 + 0 ], 1;
bra $END;
{wait}{loads}
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [1024], 128;
@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [0], [%rd0, {{0, 0}}], [1024];
mov.b32 %r5, 0;
$COMES:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [1024], %r5;
@!%p2 bra $COMES;
$END:
"""


@pytest.mark.parametrize(
    ("stored", "loads", "is_right"),
    [
        ("fence.proxy.async;", "", True),
        ("", "fence.proxy.async;", True),
        ("fence.proxy.async.global;", "", True),
        ("", "", False),
        ("fence.proxy.async.shared::cta;", "fence.proxy.async.shared::cta;", False),
    ],
)
def test_a_box_of_what_another_program_stored_takes_a_proxy_fence_in_global_memory(stored, loads, is_right):
    body = SENT_BOX.format(stored=stored, wait=WAIT_FOR_ONE, loads=loads)
    for seed in SEEDS:
        box = Matrix(np.zeros((1, 32), np.uint32), (1, 32))
        with contextlib.nullcontext() if is_right else pytest.raises(Fault, match="race: load of global"):
            run_kernel(body, box, np.zeros(1, np.uint32), grid=2, seed=seed)
