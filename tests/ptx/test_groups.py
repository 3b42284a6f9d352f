"""The kernels of projections that share x, compiled for two architectures and run in bf16."""

import pytest

from tests.ptx.children import run_command


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_groups_kernels_are_right_in_bf16_under_each_schedule(architecture):
    done = run_command("tests.ptx.driver.groups", architecture)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 6
