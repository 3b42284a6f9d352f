"""The check of the persistent kernels in plain Triton can say no."""

import pytest

from fastlora_kernels.compile_check.compiler import Resources
from fastlora_kernels.compile_check.flattened import (
    Step,
    check_flattened,
    faults,
    flattened_cases,
    step_of,
)

# Two loads ahead; a loop of one step that an epilogue joins again, and a loop of its own behind it.
ASSEMBLY = """
  /*0000*/ UTMALDG.2D [UR8], [UR16] ;
  /*0010*/ UTMALDG.2D [UR12], [UR6] ;
.L_x_1:
  /*0020*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0030*/ UTMALDG.2D [UR8], [UR16] ;
  /*0040*/ @P0 BRA `(.L_x_2) ;
  /*0050*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
  /*0060*/ UTMASTG.2D [UR8], [UR16] ;
.L_x_2:
  /*0070*/ @P1 BRA `(.L_x_1) ;
.L_x_3:
  /*0080*/ UTMALDG.2D [UR8], [UR16] ;
  /*0090*/ @P2 BRA `(.L_x_3) ;
  /*00a0*/ EXIT ;
"""
MADE, STEP = Resources(225_304, 206, 0, "", ()), Step(106, 4, 2, 2, 4)


def test_a_step_is_the_shortest_way_round():
    assert step_of(ASSEMBLY) == Step(4, 1, 1, 1, 2)
    assert step_of(ASSEMBLY.replace("HGMMA", "FFMA")) is None
    once_a_tile = ASSEMBLY.replace("UTMASTG", "UTMALDG")
    assert step_of(once_a_tile).loads_of_tiles == 2


def test_a_sound_kernel_has_no_fault():
    assert faults(MADE, STEP) == []


@pytest.mark.parametrize(
    ("made", "step", "fault"),
    [
        (MADE._replace(spill=8), STEP, "spills 8 bytes"),
        (MADE._replace(shared=232_449), STEP, "takes 232449 bytes"),
        (MADE, None, "no main loop"),
        (MADE, STEP._replace(instructions=121), "takes 121 instructions a step"),
        (MADE, STEP._replace(products=5), "has 5 products"),
        (MADE, STEP._replace(loads_of_tiles=6), "loads 6 blocks of x and W at a tile, 2 of them a step"),
        (MADE, STEP._replace(loads_ahead=0), "has 0 loads under way before the first step, not 4"),
    ],
    ids=str,
)
def test_a_faulty_one_is_told(made, step, fault):
    (found,) = faults(made, step)
    assert fault in found


def test_each_pass_has_a_case_and_every_variant_has_more():
    few, all_ = (list(flattened_cases(["sm_80", "sm_90"], every_variant=every)) for every in (False, True))
    assert {case.direction for case in few} == {"forward", "backward"}
    assert set(few) < set(all_)
    assert not list(flattened_cases(["sm_80"], every_variant=True))


def test_what_does_not_compile_is_a_fault_with_its_reason():
    (case, *_) = flattened_cases(["sm_90"], every_variant=False)
    line, (fault,) = check_flattened(case._replace(element="no dtype"))
    assert "Error" in line
    assert fault
