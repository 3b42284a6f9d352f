"""The tile table compiles for its targets, and the check that says so can say no."""

import os
import subprocess
import sys

import pytest

from fastlora_kernels.compile_check import few_rows, unpacking
from fastlora_kernels.compile_check.compiler import Resources
from fastlora_kernels.compile_check.groups import group_cases
from fastlora_kernels.compile_check.rules import faults as faults_of
from fastlora_kernels.compile_check.variants import TARGETS, Case, Variant, cases, representative_cases
from fastlora_kernels.tables import ARCHITECTURES, load_table
from tests.kernels import test_hand_over as hand_over


# The quick cases of tests/ptx compile a few of them as well; the check's own run, which takes minutes, all.
@pytest.mark.exhaustive
@pytest.mark.parametrize(("kernel", "expected"), [(", forward", 6), (": forward", 1)])
def test_the_entries_that_most_shapes_take_compile_within_the_rules(kernel, expected):
    # A process of its own: TRITON_INTERPRET replaces the kernels by interpreted ones in this one.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fastlora_kernels.compile_check",
            "sm_90",
            "--only",
            f"half square{kernel}",  # ":" for projections that share x
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Of the plain kernel three variants; of its kin one: DoRA, experts, adapters, projections that share x.
    assert f" {expected} kernels within the rules" in done.stdout


def test_the_check_takes_every_entry_of_every_table_for_every_target():
    found = {
        (case.architecture, case.kind, case.shape_class, case.direction, case.target)
        for case in cases(list(ARCHITECTURES), every_variant=False)
    }
    entries = [
        len(classes) * len(TARGETS[architecture])
        for architecture in ARCHITECTURES
        for classes in load_table(architecture).entries.values()
    ]
    assert len(found) == 2 * sum(entries)


def test_the_check_takes_projections_that_share_x_with_every_entry_but_those_that_spill():
    def places(cases_):
        return {
            (c.architecture, c.kind, c.shape_class, c.direction, c.variant.adapter, c.target) for c in cases_
        }

    names = list(ARCHITECTURES)
    found = [case.single for case in group_cases(names, every_variant=False)]
    assert not any(case.variant.dropout for case in found)
    left_out = places(representative_cases(names, every_variant=False)) - places(found)
    assert places(found) < places(representative_cases(names, every_variant=False))
    assert {(place[2], place[3], place[4] == "fp32") for place in left_out} <= {
        ("few", "forward", True),
        ("narrow", "backward", True),
        ("narrow", "backward", False),
        *((shape_class, "backward", True) for shape_class in ("few", "low", "square", "wide")),
    }


def test_every_architecture_with_a_table_has_targets():
    assert set(TARGETS) == set(ARCHITECTURES)


# What the check looks for besides the hand-over; it reads no further than the kernel's end for that.
PTX = (
    hand_over.PTX
    + """
    cp.async.bulk.tensor.2d.shared::cta.global wgmma.mma_async cp.async.bulk.tensor.2d.global.shared::cta
"""
)


def faults(**changed):
    case = Case(
        "sm_90",
        "half",
        "square",
        "forward",
        load_table("sm_90").entries["half"]["square"].forward,
        Variant(tma=True),
        TARGETS["sm_90"][0],
    )
    made = Resources(1024, registers=128, spill=0, assembly=PTX, arguments=hand_over.ARGUMENTS)
    return faults_of(case, made._replace(**changed))


def test_a_sound_kernel_has_no_fault():
    assert faults() == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"spill": 8}, "spills 8 bytes"),
        ({"shared": 1 << 20}, "takes 1048576 bytes of shared memory"),
        ({"assembly": PTX.replace("wgmma.mma_async", "")}, "has no wgmma"),
        ({"assembly": PTX.replace("shared::cta.global", "")}, "loads nothing through TMA"),
        ({"assembly": PTX.replace("global.shared::cta", "")}, "stores nothing through TMA"),
        ({"assembly": PTX.replace("red.global.gpu.release", "red.global.gpu.relaxed")}, "does not publish"),
    ],
    ids=str,
)
def test_a_faulty_kernel_is_named(changed, fault):
    assert any(fault in found for found in faults(**changed))


def faults_of_packed(monkeypatch, module, compile, check, cases, **changed):
    """What the check finds in the first kernel that reads a packed W, if it compiles to this."""
    made = Resources(1024, registers=128, spill=0, assembly=PACKED_PTX, arguments=hand_over.ARGUMENTS)
    monkeypatch.setattr(module, compile, lambda case: made._replace(**changed))
    monkeypatch.setattr(few_rows, "_IS_NEW", True)
    return check(next(cases(["sm_90"], every_variant=True)))[1]  # of rank 16, as the PTX is


UNPACKING = (unpacking, "compile_unpacking", unpacking.check_unpacking, unpacking.unpacking_cases)
FEW_ROWS = (few_rows, "compile_few_rows", few_rows.check_few_rows, few_rows.few_rows_cases)
PACKED_PTX = PTX + "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%r1, %r2}, {%r3}, %rd1, %p1, 1, 1;"


@pytest.mark.parametrize(
    ("kernel", "changed", "fault"),
    [
        (UNPACKING, {"spill": 8}, "spills 8 bytes"),
        # A nested scale's product and sum must round apart, as the library's do.
        (UNPACKING, {"assembly": PACKED_PTX + "fma.rn.f32 %f1, %f2, %f3, %f4;"}, "fuses a product and a sum"),
        (FEW_ROWS, {"spill": 8}, "spills 8 bytes"),
        (FEW_ROWS, {"shared": 1 << 20}, "takes 1048576 bytes of shared memory"),
        (FEW_ROWS, {"assembly": PACKED_PTX + "fma.rn.f32 %f1, %f2, %f3, %f4;"}, "fuses a product and a sum"),
        (FEW_ROWS, {"assembly": PACKED_PTX.replace("{%r3}", "%rd3")}, "has no wgmma with W in registers"),
        (FEW_ROWS, {"assembly": PACKED_PTX + 16 * "ld.global.b8 %r1, [%rd1];\n"}, "a byte at a time"),
        (FEW_ROWS, {"assembly": PACKED_PTX.replace("gpu.release", "gpu.relaxed")}, "does not publish"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_over_a_packed_weight_is_held_to_its_rules(kernel, changed, fault, monkeypatch):
    assert faults_of_packed(monkeypatch, *kernel) == []
    assert any(fault in found for found in faults_of_packed(monkeypatch, *kernel, **changed))
