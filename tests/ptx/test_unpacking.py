"""What unpacks W, compiled for sm_90 and run in bf16, which Triton's interpreter would cut off."""

import pytest

from tests.ptx.children import run_command

FORMATS = ("bnb-4bit", "fp8", "hqq", "torchao-nvfp4", "torchao-mxfp4")


@pytest.mark.exhaustive
def test_the_kernels_that_unpack_w_give_the_hosts_bits_in_bf16():
    done = run_command("tests.ptx.driver.unpacking")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{format}: the same bits" for format in FORMATS]
