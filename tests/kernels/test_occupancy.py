"""Resident programs, by hand from the vendors' limits."""

import pytest

from fastlora_kernels.compile_check.occupancy import LIMITS, resident_programs
from fastlora_kernels.compile_check.variants import TARGETS


@pytest.mark.parametrize(
    ("target", "num_warps", "registers", "shared", "expected"),
    [
        ("90", 8, 64, 0, (4, "registers")),
        ("90", 8, 65, 0, (3, "registers")),
        ("90", 8, 181, 196_640, (1, "registers")),
        ("90", 4, 70, 61_464, (3, "shared memory")),
        ("90", 1, 16, 0, (32, "programs")),
        ("86", 8, 32, 0, (6, "warps")),
        ("86", 8, 16, 50 * 1024, (1, "shared memory")),
        ("gfx942", 8, 128, 32_768, (2, "registers")),
    ],
)
def test_the_scarcest_resource_sets_how_many_programs_are_resident(
    target, num_warps, registers, shared, expected
):
    assert resident_programs(target, num_warps, registers, shared) == expected


def test_every_target_has_limits():
    assert set(LIMITS) == {str(target.arch) for targets in TARGETS.values() for target in targets}
