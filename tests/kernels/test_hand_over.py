"""The check of a hand-over's order in PTX finds each fault; tests/ptx/gate.py plants them in the kernels."""

import pytest

from fastlora_kernels.compile_check.hand_over import hand_over_faults
from fastlora_kernels.compile_check.hand_over_events import Kernel
from fastlora_kernels.tables import load_table
from tests.ptx.children import run_command

# The hand-overs of a forward kernel as Triton compiles them, without arithmetic: p tiles in splits, y tiles.
PTX = """
.visible .entry forward_kernel(
    .param .u64 .ptr .global .align 1 forward_kernel_param_0,
    .param .u64 .ptr .global .align 1 forward_kernel_param_1,
    .param .u64 .ptr .global .align 1 forward_kernel_param_2,
    .param .u64 .ptr .global .align 1 forward_kernel_param_3,
    .param .u32 forward_kernel_param_4,
    .param .u32 forward_kernel_param_5,
    .param .u64 .ptr .global .align 1 forward_kernel_param_6,
    .param .u64 .ptr .global .align 1 forward_kernel_param_7
)
.maxnreg 255
{
    .reg .pred %p<9>;
    ld.param.b64 %rd1, [forward_kernel_param_0];
    ld.param.b64 %rd2, [forward_kernel_param_1];
    ld.param.b64 %rd3, [forward_kernel_param_2];
    ld.param.b64 %rd4, [forward_kernel_param_3];
    ld.param.b32 %r1, [forward_kernel_param_4];
    ld.param.b32 %r2, [forward_kernel_param_5];
    mov.u32 %r3, %tid.x;
    setp.eq.b32 %p1, %r3, 0;
    @%p1 atom.global.gpu.relaxed.add.u32 %r4, [ %rd4 + 0 ], 1;
    @%p1 st.shared::cta.b32 [ %r5 + 0 ], %r4;
    bar.sync 0;
    ld.shared.b32 %r6, [global_smem];
    add.s32 %r7, %r1, 15;
    shr.s32 %r8, %r7, 4;
    add.s32 %r9, %r2, -1;
    setp.ge.s32 %p2, %r6, %r8;
    @%p2 bra $L__BB0_2;
// %bb.1:
    mad.wide.s32 %rd5, %r6, 4, %rd2;
    st.global.b32 [ %rd5 + 0 ], %r3;    // a split
    bar.sync 0;
    mov.b32 %r10, 1;
    @%p1 atom.global.gpu.acq_rel.add.u32 %r11, [ %rd4 + 64 ], %r10;
    @%p1 st.shared::cta.b32 [ %r5 + 0 ], %r11;
    bar.sync 0;
    ld.shared.b32 %r12, [global_smem];
    setp.ne.b32 %p3, %r12, %r9;
    @%p3 bra $L__BB0_5;
    bar.sync 0;    // arrived
    ld.global.cg.b32 %r13, [ %rd5 + 0 ];
    mad.wide.s32 %rd6, %r6, 4, %rd1;
    @%p4 st.global.b32 [ %rd6 + 0 ], %r13;    // a tile of p
    bar.sync 0;    // stored
    mad.wide.s32 %rd7, %r6, 4, %rd4;
    @%p1 red.global.gpu.release.add.u32 [ %rd7 + 4 ], %r10;
    bra.uni $L__BB0_5;
$L__BB0_2:
    mad.wide.s32 %rd8, %r6, 4, %rd4;
    @%p1 ld.global.gpu.acquire.b32 %r14, [ %rd8 + 4 ];
    @%p1 st.shared::cta.b32 [ %r5 + 0 ], %r14;
    bar.sync 0;
    ld.shared.b32 %r15, [global_smem];
    setp.ge.s32 %p5, %r15, %r8;
    @%p5 bra $L__BB0_4;
$L__BB0_3:
    bar.sync 0;
    @%p1 ld.global.gpu.acquire.b32 %r16, [ %rd8 + 4 ];
    @%p1 st.shared::cta.b32 [ %r5 + 0 ], %r16;
    bar.sync 0;
    ld.shared.b32 %r17, [global_smem];
    setp.lt.s32 %p6, %r17, %r8;
    @%p6 bra $L__BB0_3;
$L__BB0_4:
    bar.sync 0;    // waited
    mad.wide.s32 %rd9, %r6, 4, %rd1;
    cp.async.ca.shared.global [ %r5 + 0 ], [ %rd9 + 0 ], 0x4;
    st.global.b32 [ %rd3 + 0 ], %r3;    // y
$L__BB0_5:
    ret;
$L__func_end0:
}
"""
ARGUMENTS = ("p_ptr", "scratch_ptrs.0", "y", "workspace_ptr", "r", "split_p")
SPLIT = "    st.global.b32 [ %rd5 + 0 ], %r3;    // a split\n"
ARRIVE = "    @%p1 atom.global.gpu.acq_rel.add.u32 %r11, [ %rd4 + 64 ], %r10;\n"
STORE = "    @%p4 st.global.b32 [ %rd6 + 0 ], %r13;    // a tile of p\n"
PUBLISH = "    @%p1 red.global.gpu.release.add.u32 [ %rd7 + 4 ], %r10;\n"
READ = "    cp.async.ca.shared.global [ %r5 + 0 ], [ %rd9 + 0 ], 0x4;\n"


def faults(ptx: str, arguments: tuple[str, ...] = ARGUMENTS) -> list[str]:
    tile = load_table("sm_80").entries["half"]["square"].forward
    return hand_over_faults(ptx, Kernel("forward", arguments, tile, 16))


def test_a_sound_hand_over_has_no_fault():
    assert faults(PTX) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (STORE, "", "never stores p_ptr"),
        (PUBLISH, "", "does not publish a tile"),
        (PUBLISH, PUBLISH.replace("release", "relaxed"), "does not publish a tile"),
        (PUBLISH, PUBLISH.replace("gpu", "cta"), "does not publish a tile"),
        (PUBLISH, PUBLISH * 2, "counts a tile twice"),
        (PUBLISH, PUBLISH.replace("%r10", "2"), "does not count one tile"),
        (PUBLISH, PUBLISH + STORE, "stores a tile after it was published"),
        (PUBLISH, "    @%p8 bra $L__BB0_5;\n" + PUBLISH, "does not publish a tile"),
        ("bar.sync 0;    // stored\n", "", "publishes a tile without a barrier"),
        ("// stored\n", "\n" + STORE, "publishes a tile without a barrier"),
        (SPLIT, "", "counts an arrival without a barrier"),
        (SPLIT, "    @%p8 bra $L__BB0_6;\n" + SPLIT + "$L__BB0_6:\n", "counts an arrival without a barrier"),
        (ARRIVE, ARRIVE + SPLIT, "stores a split after it counted"),
        ("add.s32 %r9, %r2, -1", "add.s32 %r9, %r2, -2", "does not compare it with the number of splits"),
        ("bar.sync 0;    // arrived\n", "", "reads scratch_ptrs.0 before"),
        (ARRIVE, ARRIVE.replace("acq_rel", "release"), "reads scratch_ptrs.0 before"),
        ("ld.global.gpu.acquire.b32 %r16", "ld.global.gpu.relaxed.b32 %r16", "reads p_ptr before"),
        ("%p5, %r15, %r8", "%p5, %r15, %r7", "waits by the flags for"),
        ("add.s32 %r7, %r1, 15", "add.s32 %r7, %r1, -1", "waits by the flags for"),
        ("setp.lt.s32 %p6", "setp.ne.s32 %p6", "does not compare it"),
        ("@%p6 bra", "@!%p6 bra", "reads p_ptr before"),
        ("bar.sync 0;    // waited\n", "", "reads p_ptr before"),
        (READ, "", "never reads p_ptr"),
        ("@%p2 bra $L__BB0_2", "@%p2 bra $L__BB0_4", "reads p_ptr before"),
    ],
)
def test_a_fault_is_named(old, new, fault):
    assert PTX.count(old) == 1
    changed = PTX.replace(old, new)
    assert any(fault in found for found in faults(changed)), faults(changed)


def test_other_parameters_than_the_arguments_are_named():
    assert faults(PTX, ARGUMENTS[:-1]) == ["has 8 parameters in PTX, not 7"]


# What changes nothing, as Triton puts a barrier there too.
REDUNDANT = "publish without the barrier of its own"


@pytest.mark.exhaustive
def test_faults_planted_in_the_kernels_are_found_in_what_triton_compiles():
    done = run_command("tests.ptx.gate")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 30
    for line in lines:
        harmless = "the kernels as they are" in line or REDUNDANT in line
        assert line.endswith("nothing found") == harmless, line
