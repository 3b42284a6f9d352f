"""Faults planted in a small kernel by leaving out or replacing one of its lines."""

import numpy as np
import pytest

from tests.ptx.faults import Fault
from tests.ptx.small_kernels import run_kernel

# Until the counter at %rd1 is 1; lane 0, which has %p1, reads it.
WAIT_FOR_ONE = """$WAIT:
mov.b32 %r5, 0;
@%p1 ld.global.gpu.acquire.b32 %r5, [ %rd1 + 0 ];
shfl.sync.idx.b32 %r5, %r5, 0, 31, -1;
setp.lt.u32 %p3, %r5, 1;
@%p3 bra $WAIT;
"""

SEEDS = [None, 0, 1, 2]


def words(count):
    return np.arange(count, dtype=np.uint32)


def assert_found_without(line, body, *arrays, message, by="", seeds=SEEDS, **options):
    """Clean as it stands, in every order; a fault in every order once `line` is replaced."""
    assert line in body
    for seed in seeds:
        run_kernel(body, *(_copied(one) for one in arrays), seed=seed, **options)
        with pytest.raises(Fault, match=message):
            run_kernel(body.replace(line, by), *(_copied(one) for one in arrays), seed=seed, **options)


def _copied(one):
    return one.copy() if isinstance(one, np.ndarray) else one
