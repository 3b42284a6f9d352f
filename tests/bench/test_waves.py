"""The model of a launch: what is planned is never worse in it than what was planned before."""

import itertools

import pytest

from bench import waves
from tests.cases import quick

# (K, N) of layers of Llama 3.1 8B, Gemma 2B, BERT and GPT-2.
LAYERS = ((4096, 4096), (4096, 1024), (14336, 4096), (2048, 256), (768, 3072), (1024, 1024), (1600, 4800))
ROWS = (1, 16, 64, 100, 128, 256, 384, 512, 768, 1024, 2048)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", quick(list(waves.GPUS), "H100"))
def test_no_plan_is_slower_than_programs_without_regard_for_each_other(name, direction):
    gpu = waves.GPUS[name]
    for (K, N), M, r in itertools.product(LAYERS, ROWS, (16, 64)):
        planned = waves.launch_of(direction, gpu, M, K, N, r)
        before, after = waves.seconds(waves.regardless(planned, gpu), gpu), waves.seconds(planned, gpu)
        assert after <= 1.01 * before, (M, K, N, r)


def test_a_wave_that_p_would_break_is_not_broken():
    h100 = waves.GPUS["H100"]
    planned = waves.launch_of("forward", h100, 256, 4096, 4096, 16)
    before = waves.regardless(planned, h100)
    assert (before.plan.split_k["p"], planned.plan.split_k["p"]) == (16, 2)
    alone = waves.seconds(planned, h100, low_rank=False)
    assert waves.seconds(planned, h100) < 1.02 * alone
    assert waves.seconds(before, h100) > 1.1 * alone


def test_few_rows_have_dx_before_dB_and_dA():
    h100 = waves.GPUS["H100"]
    planned = waves.launch_of("backward", h100, 256, 4096, 4096, 16)
    before = waves.regardless(planned, h100)
    assert (before.early, planned.early) == (32, 64)
    alone = waves.seconds(planned, h100, low_rank=False)
    assert waves.seconds(planned, h100) < 1.03 * alone
    assert waves.seconds(before, h100) > 1.3 * alone


def test_programs_are_dealt_to_whoever_is_free_first():
    # 128 of 132 multiprocessors, then one more wave for four tiles more.
    h100 = waves.GPUS["H100"]
    one, two = (waves.launch_of("forward", h100, 128, 4096, 128 * tiles, 16) for tiles in (128, 136))
    ratio = waves.seconds(two, h100, low_rank=False) / waves.seconds(one, h100, low_rank=False)
    assert ratio == pytest.approx(2)
