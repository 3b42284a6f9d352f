"""DoRA's norms and sums, compiled for GPUs and run in bf16, fp16 and fp32."""

import pytest

from tests.ptx.children import run_command


@pytest.mark.exhaustive
def test_norms_and_sums_keep_the_budget():
    done = run_command("tests.ptx.driver.dora_sums")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 6
