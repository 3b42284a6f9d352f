"""Every GPU gets an entry of the tile table, and every rank a block."""

import pytest

from fastlora_kernels import configs

KIB = 1024


@pytest.mark.parametrize(
    ("capability", "shared_memory", "expected"),
    [
        ((8, 0), 163 * KIB, "sm_80"),
        ((8, 6), 99 * KIB, "sm_86"),
        ((8, 9), 99 * KIB, "sm_86"),
        ((9, 0), 227 * KIB, "sm_90"),
        ((10, 0), 227 * KIB, "sm_100"),
        ((10, 3), 227 * KIB, "sm_100"),
        ((12, 0), 99 * KIB, "sm_86"),
        ((15, 0), 400 * KIB, "sm_100"),
        ((8, 7), 48 * KIB, "sm_86"),
    ],
)
def test_an_unknown_gpu_gets_the_newest_entry_that_fits_it(capability, shared_memory, expected):
    assert configs.nearest_architecture("cuda", capability, shared_memory) == expected


def test_a_rocm_gpu_gets_the_cdna_entry():
    assert configs.nearest_architecture("hip", (9, 4), 64 * KIB) == "gfx942"


def test_every_architecture_has_an_entry_for_every_kind_and_row_class():
    for architecture in configs.SHARED_MEMORY:
        for kind in ("half", "tf32", "ieee"):
            for M in (1, 64, 65, 100_000):
                assert configs.entry(architecture, kind, configs.row_class(M))


@pytest.mark.parametrize("r", [1, 3, 15, 16, 17, 24, 64, 65, 128, 1000])
def test_rank_blocks_are_powers_of_two_that_cover_small_ranks_whole(r):
    for architecture in configs.SHARED_MEMORY:
        for kind, split in (("half", False), ("half", True), ("ieee", False)):
            block = configs.rank_block(r, architecture, kind, split)
            assert block >= 16
            assert block & (block - 1) == 0
            assert block >= min(r, 16)


def test_only_aligned_tensor_core_products_on_hopper_and_newer_take_tma():
    assert configs.takes_tma("sm_90", "half")
    assert configs.takes_tma("sm_100", "tf32")
    assert not configs.takes_tma("sm_80", "half")
    assert not configs.takes_tma("sm_90", "ieee")
