"""The check of the persistent kernels can say no."""

import pytest

from fastlora_kernels.compile_check.compiler import Resources
from fastlora_kernels.compile_check.persistent import (
    check_persistent,
    faults,
    persistent_cases,
    steps_of,
)

# A step of four products, a first column's with more, a loop around both, and one that stores.
ASSEMBLY = """
.L_x_0:
  /*0000*/ MOV R1, R2 ;
.L_x_1:
  /*0010*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0020*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0030*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0040*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0050*/ @P0 BRA `(.L_x_1) ;
.L_x_2:
  /*0060*/ HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0070*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0080*/ @P0 BRA `(.L_x_2) ;
  /*0090*/ BRA `(.L_x_0) ;
.L_x_3:
  /*00a0*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*00b0*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*00c0*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*00d0*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*00e0*/ STSM.16.M88.4 [R1], R2 ;
  /*00f0*/ BRA `(.L_x_3) ;
"""
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
STEP = [*["HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24"] * 49, WAIT]
MADE = Resources(200_000, 168, 0, "setmaxnreg.inc.sync.aligned.u32 \t240;", ())


def test_the_instructions_of_a_step_are_those_of_its_loop():
    assert [len(step) for step in steps_of(ASSEMBLY, "64x256x16")] == [5]
    assert steps_of(ASSEMBLY, "64x128x16") == []


def test_a_sound_kernel_has_no_fault():
    assert faults(MADE, [STEP]) == []


@pytest.mark.parametrize(
    ("changed", "steps", "fault"),
    [
        ({"spill": 8}, [STEP], "spills 8 bytes"),
        ({"shared": 232_449}, [STEP], "takes 232449 bytes"),
        ({"assembly": ""}, [STEP], "gives no registers"),
        ({}, [STEP, [*STEP, *STEP[:11]]], "takes 61 instructions a step"),
        ({}, [], "no main loop"),
        ({}, [STEP, [*STEP[:-1], WAIT, WAIT]], "waits for each product"),
    ],
    ids=str,
)
def test_a_faulty_one_is_told(changed, steps, fault):
    (found,) = faults(MADE._replace(**changed), steps)
    assert fault in found


def test_each_pass_has_a_case_and_every_variant_has_more():
    few, all_ = (list(persistent_cases(["sm_80", "sm_90"], every_variant=every)) for every in (False, True))
    assert {case.direction for case in few} == {"forward", "backward"}
    assert set(few) < set(all_)
    assert not list(persistent_cases(["sm_80"], every_variant=True))


def test_what_does_not_compile_is_a_fault_with_its_reason(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastlora_kernels.hopper.forward", None)
    (case, *_) = persistent_cases(["sm_90"], every_variant=False)
    line, (fault,) = check_persistent(case)
    assert "ModuleNotFoundError" in line
    assert "fastlora_kernels.hopper.forward" in fault
