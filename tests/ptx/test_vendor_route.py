"""The launches beside the vendor's products, compiled for GPUs and run in bf16."""

import pytest

from tests.ptx.children import run_command


@pytest.mark.exhaustive
def test_what_is_low_rank_beside_the_vendors_products_keeps_the_budget():
    done = run_command("tests.ptx.driver.vendor_route")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4
