"""What a GPU run measures, and in which order."""

import torch

from bench.methods import METHODS
from bench.precompile import variants
from bench.schedule import LLAMA_8B, LLAMA_70B, gpu_measurements
from bench.settings import DRY

MEASUREMENTS = gpu_measurements()


def test_the_headline_shape_is_first_with_every_method_and_mode():
    first = MEASUREMENTS[0]
    assert first.case[:4] == (8192, 4096, 4096, 16)
    assert set(first.methods) == set(METHODS) - {"fastlora-p0"}
    assert (first.modes, first.launches) == (("eager", "graph"), True)


def test_every_case_stands_once_and_names_methods_there_are():
    cases = [one.case for one in MEASUREMENTS]
    assert len(set(cases)) == len(cases)
    assert all(set(one.methods) <= set(METHODS) for one in (*MEASUREMENTS, *DRY.measurements))


def test_ours_and_the_frozen_layer_are_in_every_case_and_ours_undropped_where_there_is_dropout():
    for one in (*MEASUREMENTS, *DRY.measurements):
        assert {"frozen", "fastlora"} <= set(one.methods)
        assert ("fastlora-p0" in one.methods) == (one.case.dropout > 0)


def test_the_means_shapes_come_with_both_adapter_dtypes():
    for adapter_dtype in (torch.bfloat16, torch.float32):
        for M in (2048, 8192):
            layers = {
                (c.K, c.N) for c, *_ in MEASUREMENTS if (c.M, c.r, c.adapter_dtype) == (M, 16, adapter_dtype)
            }
            assert layers >= {*LLAMA_8B, *LLAMA_70B}


def test_few_variants_need_compiling_and_each_method_that_compiles_has_its_own():
    found = variants(MEASUREMENTS)
    ours = [case for name, case in found if name == "fastlora"]
    assert len(ours) < len(MEASUREMENTS)
    assert {(c.dtype, c.adapter_dtype, c.r, c.dropout, c.bias) for c in ours} == {
        (c.dtype, c.adapter_dtype, c.r, c.dropout, c.bias) for c, *_ in MEASUREMENTS
    }
    compiled = [case for name, case in found if name == "compiled"]
    assert compiled == [one.case for one in MEASUREMENTS if "compiled" in one.methods]
