"""Matrix instructions: which register of which lane holds which element, by the ISA's formulas."""

import numpy as np
import pytest

from tests.ptx import wgmma
from tests.ptx.faults import Fault
from tests.ptx.floating import bf16_bits, bf16_value
from tests.ptx.small_kernels import Matrix, New, run_kernel

LANE = np.arange(32)
GROUP, PLACE = LANE // 4, LANE % 4


def small_integers(shape, seed=0):
    """Exact in every format, and so are their products' sums."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def encode(values, kind):
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32)
    return bf16_bits(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)


def a_register(A, j, kind):
    """9.7.15.5.8, 9.7.15.5.5: register j of a fragment of A."""
    rows = GROUP + 8 * (j % 2)
    if kind == "tf32":
        return encode(A[rows, PLACE + 4 * (j // 2)], kind)
    low, high = (encode(A[rows, 2 * PLACE + h + 8 * (j // 2)], kind).astype(np.uint32) for h in (0, 1))
    return low | high << 16


def b_register(B, j, kind):
    if kind == "tf32":
        return encode(B[PLACE + 4 * j, GROUP], kind)
    low, high = (encode(B[2 * PLACE + h + 8 * j, GROUP], kind).astype(np.uint32) for h in (0, 1))
    return low | high << 16


@pytest.mark.parametrize(("kind", "k"), [("bf16", 16), ("f16", 16), ("tf32", 8)])
def test_mma_multiplies_its_fragments(kind, k):
    A, B, C = small_integers((16, k)), small_integers((k, 8), 1), small_integers((16, 8), 2)
    registers = [a_register(A, j, kind) for j in range(4)] + [b_register(B, j, kind) for j in range(2)]
    registers += [C[GROUP + 8 * (i // 2), 2 * PLACE + i % 2].view(np.uint32) for i in range(4)]
    body = "mad.wide.u32 %rd20, %r0, 4, %rd0; mad.wide.u32 %rd21, %r0, 4, %rd1;\n"
    body += "".join(f"ld.global.b32 %r{10 + j}, [%rd20+{128 * j}];\n" for j in range(10))
    body += f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {{ %r30, %r31, %r32, %r33 }}, "
    body += "{ %r10, %r11, %r12, %r13 }, { %r14, %r15 }, { %r16, %r17, %r18, %r19 };\n"
    body += "".join(f"st.global.b32 [%rd21+{128 * i}], %r{30 + i};\n" for i in range(4))
    found = run_kernel(body, np.concatenate(registers), New(np.zeros((4, 32), np.float32)))[1]
    D = np.zeros((16, 8), np.float32)
    for i in range(4):
        D[GROUP + 8 * (i // 2), 2 * PLACE + i % 2] = found[i]
    assert np.array_equal(D, A @ B + C)


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_deals_out_rows_of_eight(trans):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    body = """
    mad.wide.u32 %rd20, %r0, 16, %rd0; mad.wide.u32 %rd21, %r0, 16, %rd1;
    ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd20];
    shl.b32 %r6, %r0, 4;
    st.shared.v4.b32 [%r6], {%r2, %r3, %r4, %r5};
    """
    body += f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r6];"
    body += "st.global.v4.b32 [%rd21], {%r10, %r11, %r12, %r13};"
    found = run_kernel(body, matrices, New(np.zeros((32, 4), np.uint32)))[1]
    for j in range(4):
        matrix = matrices[j].T if trans else matrices[j]
        low, high = matrix[GROUP, 2 * PLACE].astype(np.uint32), matrix[GROUP, 2 * PLACE + 1].astype(np.uint32)
        assert np.array_equal(found[:, j], low | high << 16)


def test_stmatrix_undoes_ldmatrix():
    body = """
    mad.wide.u32 %rd20, %r0, 4, %rd0; mad.wide.u32 %rd21, %r0, 4, %rd1;
    ld.global.b32 %r2, [%rd20];
    shl.b32 %r6, %r0, 4;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r2};
    shr.u32 %r7, %r0, 2; shl.b32 %r7, %r7, 4; and.b32 %r8, %r0, 3; shl.b32 %r8, %r8, 2; add.s32 %r7, %r7, %r8;
    ld.shared.b32 %r9, [%r7]; st.global.b32 [%rd21], %r9;
    """
    words = np.arange(32, dtype=np.uint32)
    assert np.array_equal(run_kernel(body, words, New(words))[1], words)


def test_a_swizzle_crosses_the_chunk_with_the_row():
    # 128-byte swizzle: chunk c of the 128-byte row r lies where chunk c ^ (r % 8) would.
    rows, chunks = np.arange(16)[:, None], np.arange(8)[None]
    assert np.array_equal(wgmma.swizzled(rows * 128 + chunks * 16, 7), rows * 128 + (chunks ^ rows % 8) * 16)
    # 32-byte swizzle: four rows of 32 bytes to 128 bytes; the chunk is crossed with one bit.
    at = np.arange(0, 512, 16)
    crossed = (at >= 128) & (at < 256) | (at >= 384)
    assert np.array_equal(wgmma.swizzled(at, 1), np.where(crossed, at ^ 16, at))


LOAD = """
setp.eq.u32 %p1, %r0, 0;
@%p1 mbarrier.init.shared::cta.b64 [8192], 1;
bar.sync 0;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [8192], {bytes};
@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [0], {{box}}, [8192];
mov.b32 %r5, 0;
{{
.reg .pred complete;
wait:
mbarrier.try_wait.parity.shared::cta.b64 complete, [8192], %r5;
@!complete bra.uni wait;
}}
""".replace("{{box}}", "[%rd0, {{0, {row}}}]")


def test_a_box_is_swizzled_and_filled_with_zeros():
    matrix = np.arange(6 * 64, dtype=np.uint16).reshape(6, 64)
    body = (
        LOAD.format(bytes=8 * 128, row=2)
        + """
    shl.b32 %r6, %r0, 5; mad.wide.u32 %rd21, %r0, 32, %rd1;
    ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r6]; st.global.v4.b32 [%rd21], {%r10, %r11, %r12, %r13};
    ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r6+16];
    st.global.v4.b32 [%rd21+16], {%r10, %r11, %r12, %r13};
    """
    )
    found = run_kernel(body, Matrix(matrix, (8, 64), 3), New(np.zeros((8, 64), np.uint16)), shared=8704)[1]
    for r in range(8):
        for c in range(8):
            expected = matrix[r + 2, 8 * c : 8 * c + 8] if r + 2 < 6 else np.zeros(8)
            assert np.array_equal(found[r, 8 * (c ^ r) : 8 * (c ^ r) + 8], expected)


def test_a_stored_box_leaves_out_what_is_outside():
    body = """
    shl.b32 %r6, %r0, 4; mov.b32 %r2, 0x3F803F80; st.shared.v4.b32 [%r6], {%r2, %r2, %r2, %r2};
    fence.proxy.async.shared::cta;
    elect.sync %r3|%p2, -1;
    @%p2 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd0, {4, 1}], [0];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    before = np.zeros((3, 8), np.uint16)
    found = run_kernel(body, Matrix(before, (8, 8)))[0]
    assert np.array_equal(found[1:, 4:], np.full((2, 4), 0x3F80))
    assert not found[0].any()
    assert not found[:, :4].any()


# B [8, 16] bf16 without what a wider one would need: K-major, 32-byte swizzle; A from registers.
WGMMA = """
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r40,%r41,%r42,%r43}, A, %rd30, 1, 1, 1, 0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
""".replace("A,", "{%r20,%r21,%r22,%r23},")


def wgmma_kernel(product=WGMMA):
    """D = A B + 1 with A [64, 16] from registers and B [8, 16] through TMA, in four warps."""
    # Start 0; a group of 8 rows is 256 bytes, in units of 16; 3 is the 32-byte swizzle.
    descriptor = (256 >> 4) << 32 | 3 << 62
    body = (
        LOAD.format(bytes=256, row=0)
        + "mad.wide.u32 %rd20, %r0, 16, %rd1; mad.wide.u32 %rd21, %r0, 16, %rd2;"
    )
    body += "ld.global.v4.b32 {%r20, %r21, %r22, %r23}, [%rd20];"
    body += "".join(f"mov.b32 %r{40 + i}, 0x3F800000;" for i in range(4))
    body += f"mov.b64 %rd30, {descriptor - (1 << 64)};" + product
    body += "st.global.v4.b32 [%rd21], {%r40, %r41, %r42, %r43};"
    A, B = small_integers((64, 16)), small_integers((8, 16), 1)
    registers = np.stack(
        [a_register(A[16 * w : 16 * w + 16], j, "bf16") for w in range(4) for j in range(4)]
    ).reshape(4, 4, 32)
    given = np.ascontiguousarray(registers.swapaxes(1, 2))
    found = run_kernel(
        body,
        Matrix(bf16_bits(B), (8, 16), 1),
        given,
        New(np.zeros((4, 32, 4), np.float32)),
        num_warps=4,
        shared=8704,
    )[2]
    D = np.zeros((64, 8), np.float32)
    for w in range(4):
        for i in range(4):
            D[16 * w + GROUP + 8 * (i // 2), 2 * PLACE + i % 2] = found[w, :, i]
    return D, A @ bf16_value(bf16_bits(B)).T + 1


def test_wgmma_multiplies_what_tma_brought():
    found, expected = wgmma_kernel()
    assert np.array_equal(found, expected)


def test_wgmma_results_are_not_there_before_the_wait():
    with pytest.raises(Fault, match="while its wgmma was under way"):
        wgmma_kernel(WGMMA.replace("wgmma.wait_group.sync.aligned 0;", ""))


def test_wgmma_wants_its_fence():
    with pytest.raises(Fault, match="without a wgmma"):
        wgmma_kernel(WGMMA.replace("wgmma.fence.sync.aligned;", ""))


def test_products_that_follow_each_other_add_up():
    one, wait = WGMMA.strip().rsplit("\n", 1)
    again = one.split("\n", 1)[1]
    found, expected = wgmma_kernel("\n".join([one, again, wait]))
    assert np.array_equal(found, 2 * expected - 1)


def test_operands_in_shared_memory_are_found_in_both_directions():
    # [16, 64] K-major with a 128-byte swizzle: row 9 is in the second group of 8, chunk 2 crossed with 9 % 8.
    descriptor = 64 | (1024 >> 4) << 32 | 1 << 62
    at = wgmma.chunks(descriptor, 16, 64, 2, mn_major=False)
    assert at.shape == (16, 8)
    assert at[9, 2] == 1024 + 1024 + 128 + (2 ^ 1) * 16
    # [K = 16, 128] MN-major: 64 elements a row of 128 bytes; k = 10 is in the second 8.
    descriptor = (4096 >> 4) << 16 | (1024 >> 4) << 32 | 1 << 62
    at = wgmma.chunks(descriptor, 128, 16, 2, mn_major=True)
    assert at.shape == (16, 16)
    assert at[11, 10] == 4096 + 1024 + 2 * 128 + (3 ^ 2) * 16
