"""Programs that share a tile have work, and those of p and q leave y and dx their multiprocessors."""

import itertools

import pytest

from fastlora_kernels import tasks
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.split_counts import Blocks, Tiles, split_beside, split_k, split_of_q
from fastlora_kernels.tables import load_table

H100 = load_table("sm_90")
SQUARE = Blocks(rows=128, step=64, element=2)


@pytest.mark.parametrize(
    ("tiles", "steps", "count"),
    [(1, 64, 16), (16, 64, 8), (64, 64, 2), (128, 64, 1), (500, 64, 1), (1, 3, 1), (10, 16, 4), (0, 64, 1)],
)
def test_few_tiles_are_split_for_all_multiprocessors_but_not_below_four_steps(tiles, steps, count):
    assert split_k(H100, tiles, steps) == count


def test_no_split_is_without_work():
    for steps in range(1, 300):
        count = split_k(H100, 1, steps)
        assert (count - 1) * num_blocks(steps, count) < steps


@pytest.mark.parametrize(
    ("M", "K", "N", "r", "count"),
    [
        # 32 tiles of y by 4 programs each leave 4 of 132 multiprocessors, of which p's one tile needs no 16.
        (128, 4096, 4096, 16, 4),
        # Two tiles of p for the same 4 multiprocessors.
        (256, 4096, 4096, 16, 2),
        # A wave of 128 unsplit tiles of y takes long enough for whole tiles of p.
        (512, 4096, 4096, 16, 1),
        # So short a y would wait for whole tiles of p with 64 steps.
        (512, 4096, 1024, 16, 16),
        # Nothing is left beside two waves of 66 tiles.
        (128, 4096, 132 * 128, 16, 16),
        # More room than as many as have work need.
        (128, 4096, 100 * 128, 16, 16),
    ],
)
def test_p_takes_what_the_last_wave_of_y_leaves_free_unless_it_were_late(M, K, N, r, count):
    steps, rows = num_blocks(K, 64), num_blocks(M, 128)
    p, y = Tiles(rows, steps, r), Tiles(rows * num_blocks(N, 128), steps, 128)
    assert split_beside(H100, p, y, SQUARE) == count


def test_programs_of_p_are_at_most_as_many_as_have_work_and_none_is_without():
    for rows, columns, steps, ranks in itertools.product(
        (0, 1, 3, 16, 200), (0, 1, 8, 66), (0, 1, 7, 64), (16, 64)
    ):
        p, y = Tiles(rows, steps, ranks), Tiles(rows * columns, steps, 128)
        count = split_beside(H100, p, y, SQUARE)
        assert 1 <= count <= split_k(H100, p.count, steps)
        assert steps == 0 or (count - 1) * num_blocks(steps, count) < steps


def test_q_is_left_as_short_as_can_be_where_programs_of_dA_stand_between_those_of_dx():
    q, dx = Tiles(1, 64, 16), Tiles(32, 64, 128)
    for M, count in ((128, 4), (8192, 16)):
        tiles = tasks.BackwardTiles(rows=1, columns=32, ranks=1, q=1, dx=32, dB=64, dA=64)
        tickets = tasks.backward_tickets(tiles, M, 4096, 1, 4, 1)
        assert split_of_q(H100, q, dx, SQUARE, tickets) == count
