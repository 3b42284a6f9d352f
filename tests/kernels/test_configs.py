"""Every GPU gets an entry of the tile table, and every rank a block."""

import itertools

import pytest

from fastlora_kernels import configs
from fastlora_kernels.tables import ARCHITECTURES, load_table

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


@pytest.mark.parametrize(
    ("M", "C", "expected"),
    [
        (1, 4096, "few"),
        (16, 10, "few"),
        (17, 4096, "low"),
        (64, 4096, "low"),
        # Square tiles of up to 128 rows would be split, or not.
        (65, 4096, "low"),
        (128, 8448, "low"),
        (128, 8449, "square"),
        (129, 4096, "square"),
        (65_536, 64, "narrow"),
        (512, 4096, "square"),
        (2048, 4096, "wide"),
        (65_536, 1024, "wide"),
    ],
)
def test_a_shape_takes_the_class_that_fills_the_machine(M, C, expected):
    assert configs.shape_class(load_table("sm_90"), "half", M, C, "forward") == expected


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("M", "C", "expected"),
    [
        # 64 wide tiles, or 128 of half the size, both in one wave.
        (512, 4096, "square"),
        # 128 in one wave, or 256 in two.
        (1024, 4096, "wide"),
        # More than 132, so two waves; or three.
        (1152, 4096, "square"),
        # Five waves, or nine, which are shorter, but not by as much as wide tiles are faster; three or five.
        (1280, 14_336, "wide"),
        (1152, 8192, "square"),
    ],
)
def test_of_wide_and_square_tiles_those_are_taken_whose_waves_are_done_sooner(M, C, expected, direction):
    assert configs.shape_class(load_table("sm_90"), "half", M, C, direction) == expected


def test_a_smaller_gpu_of_the_same_architecture_has_more_waves():
    table = load_table("sm_90")
    for count, expected in ((128, "wide"), (127, "square"), (64, "wide")):
        table = table._replace(multiprocessors=count)
        assert configs.shape_class(table, "half", 1024, 4096, "forward") == expected


def test_wide_tiles_and_low_ones_of_more_than_64_rows_are_taken_with_tma_only():
    table = load_table("sm_90")
    assert configs.shape_class(table, "half", 8192, 4096, "forward", tma=False) == "square"
    assert configs.shape_class(table, "half", 65, 4096, "forward", tma=False) == "square"
    assert configs.shape_class(table, "half", 64, 4096, "forward", tma=False) == "low"
    assert configs.shape_class(load_table("sm_80"), "half", 65, 4096, "forward") == "square"


@pytest.mark.parametrize("kind", ["half", "tf32", "ieee"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "interpreter"])
def test_every_shape_has_an_entry_whatever_classes_a_table_has(architecture, kind):
    table = configs.table_of(architecture)
    for M, C in itertools.product((1, 17, 65, 100_000), (1, 65, 100_000)):
        assert configs.shape_class(table, kind, M, C, "backward") in table.entries[kind]


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match=r"architecture must be one of sm_80, .*; got 'sm_70'"):
        configs.table_of("sm_70")


@pytest.mark.parametrize("r", [1, 3, 15, 16, 17, 24, 64, 65, 128, 1000])
def test_rank_blocks_are_powers_of_two_that_cover_small_ranks_whole(r):
    for architecture in ARCHITECTURES:
        for kind, wide_adapters in (("half", False), ("half", True), ("ieee", False)):
            block = configs.rank_block(r, architecture, kind, wide_adapters)
            assert block >= 16
            assert block & (block - 1) == 0
            assert block >= min(r, 16)


def test_only_aligned_tensor_core_products_on_hopper_and_newer_take_tma():
    assert configs.takes_tma("sm_90", "half")
    assert configs.takes_tma("sm_100", "tf32")
    assert not configs.takes_tma("sm_80", "half")
    assert not configs.takes_tma("sm_90", "ieee")
