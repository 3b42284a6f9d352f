"""Integers, floats, moves and conversions, against values worked out by hand from the ISA."""

import numpy as np
import pytest

from tests.ptx import floating
from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.small_kernels import New, apply, run_kernel

U32, I32, F32, U64, U16 = np.uint32, np.int32, np.float32, np.uint64, np.uint16


@pytest.mark.parametrize(
    ("line", "inputs", "expected"),
    [
        ("add.s32 d, a, b;", ([7, 0xFFFFFFFF], [5, 1]), [12, 0]),
        ("sub.s32 d, a, b;", ([5], [7]), [0xFFFFFFFE]),
        ("mul.lo.s32 d, a, b;", ([0x10001], [0x10001]), [0x20001]),
        ("mul.hi.u32 d, a, b;", ([0x80000000], [6]), [3]),
        ("mul.hi.s32 d, a, b;", ([0xFFFFFFFF], [5]), [0xFFFFFFFF]),
        ("mad.lo.s32 d, a, b, c;", ([3], [4], [5]), [17]),
        ("div.s32 d, a, b;", ([0xFFFFFFF9, 7], [2, 0xFFFFFFFE]), [0xFFFFFFFD, 0xFFFFFFFD]),
        ("rem.s32 d, a, b;", ([0xFFFFFFF9, 7], [2, 0xFFFFFFFE]), [0xFFFFFFFF, 1]),
        ("div.u32 d, a, b;", ([0xFFFFFFF9], [2]), [0x7FFFFFFC]),
        ("min.s32 d, a, b;", ([0xFFFFFFFF], [1]), [0xFFFFFFFF]),
        ("max.u32 d, a, b;", ([0xFFFFFFFF], [1]), [0xFFFFFFFF]),
        ("neg.s32 d, a;", ([5],), [0xFFFFFFFB]),
        ("and.b32 d, a, b;", ([0b1100], [0b1010]), [0b1000]),
        ("or.b32 d, a, b;", ([0b1100], [0b1010]), [0b1110]),
        ("xor.b32 d, a, b;", ([0b1100], [0b1010]), [0b0110]),
        ("not.b32 d, a;", ([0],), [0xFFFFFFFF]),
        ("shl.b32 d, a, b;", ([1, 1, 1], [4, 31, 32]), [16, 0x80000000, 0]),
        ("shr.u32 d, a, b;", ([0x80000000, 1], [31, 40]), [1, 0]),
        ("shf.l.wrap.b32 d, a, b, c;", ([0x80000001] * 2, [3] * 2, [4, 33]), [0x38, 7]),
        ("shf.r.clamp.b32 d, a, b, c;", ([0x80000001] * 2, [3] * 2, [4, 32]), [0x38000000, 3]),
        ("shr.s32 d, a, b;", ([0x80000000, 0x80000000], [31, 40]), [0xFFFFFFFF, 0xFFFFFFFF]),
        ("bfe.u32 d, a, b, c;", ([0xABCD], [4], [8]), [0xBC]),
        ("bfe.s32 d, a, b, c;", ([0xABCD, 0x7BCD], [12, 12], [4, 4]), [0xFFFFFFFA, 7]),
        ("prmt.b32 d, a, b, c;", ([0x33221100], [0x77665544], [0x7410]), [0x77441100]),
        ("prmt.b32 d, a, b, c;", ([0x80], [0], [0x8880]), [0xFFFFFF80]),
        ("lop3.b32 d, a, b, c, 0xE8;", ([0b1100], [0b1010], [0b1001]), [0b1000]),
        ("selp.b32 d, a, b, %p1;", ([1], [2]), [2]),
        ("mov.b32 d, a;", ([9],), [9]),
        ("shfl.sync.idx.b32 d, a, 3, 31, -1;", (list(range(32)),), [3] * 32),
        ("shfl.sync.bfly.b32 d, a, 1, 31, -1;", (list(range(32)),), [i ^ 1 for i in range(32)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_integers(line, inputs, expected):
    found = apply(line, *(np.array(one, U32) for one in inputs))
    assert found[: len(expected)].tolist() == expected


def test_a_wide_product_keeps_all_bits_and_the_sign():
    a, b = np.array([-3, 2**31 - 1], I32), np.array([5, 2**31 - 1], I32)
    assert apply("mul.wide.s32 d, a, b;", a, b, out=np.int64).tolist() == [-15, (2**31 - 1) ** 2]
    assert apply("mul.wide.u16 d, a, b;", np.array([65535], U16), np.array([65535], U16)).tolist() == [
        65535**2
    ]
    c = np.array([100, 1], np.int64)
    assert apply("mad.wide.s32 d, a, b, c;", a, b, c, out=np.int64).tolist() == [85, (2**31 - 1) ** 2 + 1]


def test_conversions_extend_by_the_sign_of_the_source():
    a = np.array([-2], I32)
    assert apply("cvt.s64.s32 d, a;", a, out=np.int64).tolist() == [-2]
    assert apply("cvt.u64.u32 d, a;", a, out=U64).tolist() == [0xFFFFFFFE]
    assert apply("cvt.u32.u64 d, a;", np.array([0x100000005], U64)).tolist() == [5]


def test_eight_bits_are_cut_off_and_extended_in_a_wider_register():
    a = np.array([0x1FE, 0x7F], U32)
    assert apply("cvt.s8.s32 d, a;", a, out=U16).tolist() == [0xFFFE, 0x7F]
    assert apply("cvt.u8.u32 d, a;", a, out=U16).tolist() == [0xFE, 0x7F]
    assert apply("cvt.rn.f32.s32 d, a;", np.array([-(2**24) - 1], I32), out=F32).tolist() == [-(2.0**24)]


def test_comparisons_know_signs_and_nan():
    body = "setp.{} %p1, a, b; selp.b32 d, 1, 0, %p1;"
    a, b = np.array([-1], I32), np.array([1], I32)
    assert apply(body.format("lt.s32"), a, b).tolist() == [1]
    assert apply(body.format("lt.u32"), a, b).tolist() == [0]
    nan = np.array([np.nan], F32)
    assert apply(body.format("ge.f32"), nan, nan).tolist() == [0]
    assert apply(body.format("num.f32"), nan, nan).tolist() == [0]
    assert apply(body.format("num.f32"), nan, np.array([1], F32)).tolist() == [0]
    assert apply(body.format("num.f32"), np.array([np.inf], F32), np.array([1], F32)).tolist() == [1]


def test_predicates_guard_lane_by_lane():
    body = "mov.b32 d, 7; setp.lt.s32 %p1, a, 2; @%p1 mov.b32 d, 1; @!%p1 add.s32 d, d, 1;"
    assert apply(body, np.arange(4, dtype=I32)).tolist() == [1, 1, 8, 8]


def test_registers_are_split_and_joined_lowest_first():
    body = ".reg .b32 lo; .reg .b32 hi; mov.b64 {lo, hi}, a; mov.b64 d, {hi, lo};"
    assert apply(body, np.array([0x1111111122222222], U64), out=U64).tolist() == [0x2222222211111111]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 0x3F80),
        (1 + 2**-8, 0x3F80),  # a tie goes to the even one
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
        (3.4e38, 0x7F80),
        (-0.0, 0x8000),
        (np.nan, 0x7FFF),
        (2.0**-133, 0x0001),
    ],
)
def test_bf16_is_rounded_to_nearest_even(value, expected):
    assert apply("cvt.rn.bf16.f32 d, a;", np.array([value], F32), out=U16).tolist() == [expected]


def test_pairs_put_the_first_operand_above():
    a, b = np.array([1.0], F32), np.array([2.0], F32)
    assert apply("cvt.rn.bf16x2.f32 d, a, b;", a, b).tolist() == [0x3F804000]
    assert apply("cvt.rn.f16x2.f32 d, a, b;", a, b).tolist() == [0x3C004000]


@pytest.mark.parametrize(
    ("value", "expected"), [(65519.0, 0x7BFF), (65520.0, 0x7C00), (2.0**-25, 0), (2.0**-24, 1)]
)
def test_fp16_overflows_and_goes_to_zero_where_it_should(value, expected):
    assert apply("cvt.rn.f16.f32 d, a;", np.array([value], F32), out=U16).tolist() == [expected]


def test_widening_is_exact():
    assert apply("cvt.f32.bf16 d, a;", np.array([0x3F81], U16), out=F32).tolist() == [1 + 2**-7]
    assert apply("cvt.f32.f16 d, a;", np.array([0x0001], U16), out=F32).tolist() == [2.0**-24]


def test_fp32_arithmetic_is_rounded_once():
    a, b = np.array([1.0], F32), np.array([2.0**-24], F32)
    assert apply("add.f32 d, a, b;", a, b, out=F32).tolist() == [1.0]
    assert apply("sub.f32 d, a, b;", a, b, out=F32).tolist() == [1 - 2.0**-24]
    x = np.array([1 + 2.0**-23], F32)
    # (1 + e)^2 - 1 - 2 e = e^2 is lost if the product is rounded first.
    c = np.array([-(1 + 2.0**-22)], F32)
    assert apply("fma.rn.f32 d, a, b, c;", x, x, c, out=F32).tolist() == [2.0**-46]
    # The root of 1 + 2 e is 1 + e less e^2 / 2.
    assert apply("sqrt.rn.f32 d, a;", np.array([1 + 2.0**-22], F32), out=F32).tolist() == [1 + 2.0**-23]


def test_a_sum_that_rounding_twice_would_get_wrong():
    # 1 + 2^-24 is a tie that fp64 still tells from 1 + 2^-24 + 2^-60 only if it rounds to odd.
    a, b, c = (np.array([x], F32) for x in (2.0**-30, 2.0**-30, 1 + 2.0**-23))
    exact = floating.fma(a, b, c)
    assert exact.tolist() == [1 + 2.0**-23]
    tie = floating.fma(
        np.array([1 + 2.0**-12], F32), np.array([1 + 2.0**-12], F32), np.array([2.0**-60], F32)
    )
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a tie in fp32, which 2^-60 decides upward.
    assert tie.tolist() == [1 + 2.0**-11 + 2.0**-23]


def test_an_unknown_instruction_is_an_error_that_names_it():
    for line in ("frobnicate.b32 %r2, %r0;", "add.sat.s32 %r2, %r0, %r0;", "cvt.rz.bf16.f32 %rs1, %r0;"):
        with pytest.raises(UnknownInstruction, match=line.split()[0].replace(".", r"\.")):
            run_kernel(line)


def test_bf16_is_rounded_once_in_both_halves():
    a, b = np.array([0x3F800000 | 0x4040], U32), np.array([0x3B803B80], U32)  # 1 and 3; 2^-8
    assert apply("add.rn.bf16x2 d, a, b;", a, b)[0] == 0x3F804040  # ties go to even
    assert apply("mul.rn.bf16x2 d, a, b;", a, b)[0] == 0x3B803C40
    assert apply("sub.rn.bf16x2 d, a, b;", a, np.array([0x3F804000], U32))[0] == 0x00003F80


def test_fp16_is_rounded_once_too():
    a, b = np.array([0x3C006800], U32), np.array([0x10001000], U32)  # 1 and 2048, and 2^-11 twice
    assert apply("add.f16x2 d, a, b;", a, b)[0] == 0x3C006800  # ties go to even
    one = np.array([0x3C01], U16)
    assert apply("add.rn.f16 d, a, b;", one, np.array([0x1000], U16), out=U16).tolist() == [0x3C02]
    assert apply("add.f16 d, a, b;", np.array([0x8000], U16), np.array([0], U16), out=U16).tolist() == [0]


def test_whole_numbers_become_bf16_and_too_large_ones_are_refused():
    assert apply("cvt.rn.bf16.u32 d, a;", np.array([255, 257], U32), out=U16)[:2].tolist() == [0x437F, 0x4380]
    with pytest.raises(UnknownInstruction, match=r"2\^24"):
        apply("cvt.rn.bf16.u32 d, a;", np.array([2**24], U32), out=U16)


TABLE = """
JTI0:
    .branchtargets
        $FIRST,
        $SECOND;
shr.u32 %r2, %r0, 5;
brx.idx %r2, JTI0;
$FIRST:
    mov.b32 %r3, 5;
    bra $END;
$SECOND:
    mov.b32 %r3, 7;
$END:
mad.wide.u32 %rd20, %r0, 4, %rd0; st.global.b32 [%rd20], %r3;
"""


@pytest.mark.parametrize("seed", [None, 1])
def test_a_branch_by_an_index_takes_each_warp_to_its_own_label(seed):
    (found,) = run_kernel(TABLE, New(np.zeros(64, U32)), num_warps=2, seed=seed)
    assert found.tolist() == [5] * 32 + [7] * 32


@pytest.mark.parametrize(
    ("index", "message"),
    [("and.b32 %r2, %r0, 1;", "part at a branch"), ("add.s32 %r2, %r1, 2;", "beyond its table")],
)
def test_a_branch_by_an_index_that_is_wrong_is_reported(index, message):
    with pytest.raises(Fault, match=message):
        run_kernel(TABLE.replace("shr.u32 %r2, %r0, 5;", index), New(np.zeros(64, U32)), num_warps=2)
