"""The tasks of a launch: every ticket is one split of one tile, and no two counters are the same."""

import itertools

import pytest

from fastlora_kernels import tasks

SHAPES = [(1, 1, 1, 1), (70, 130, 90, 20), (128, 64, 256, 128), (1000, 33, 17, 3)]
NEEDS = list(itertools.product([False, True], repeat=3))


def starts(record, lengths):
    """Each field of a record of places, and the place where it ends by the length of what lies there."""
    return [(getattr(record, name), getattr(record, name) + length) for name, length in lengths.items()]


def assert_disjoint_and_filling(ranges, end):
    assert sorted(ranges)[0][0] == 0
    for (_, stop), (start, _) in itertools.pairwise([*sorted(ranges), (end, end)]):
        assert stop == start


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counters_of_a_forward_pass_fill_the_workspace_and_do_not_overlap(shape):
    M, _, N, r = shape
    tiles = tasks.forward_tiles(M, N, r, 32, 64, 16)
    found = tasks.forward_counters(tiles)
    ranges = starts(found, {"tickets": 1, "flags": tiles.rows, "p": tiles.p, "y": tiles.y})
    assert_disjoint_and_filling(ranges, found.end)


@pytest.mark.parametrize("need", NEEDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counters_of_a_backward_pass_fill_the_workspace_and_do_not_overlap(shape, need):
    M, K, N, r = shape
    tiles = tasks.backward_tiles(M, N, K, r, *need, 32, 64, 128, 16, 64)
    found = tasks.backward_counters(tiles)
    lengths = {"tickets": 1, "all_rows": 1, "flags": tiles.rows, "q": tiles.q, "dx": tiles.dx}
    ranges = starts(found, lengths | {"gradients": tiles.dB + tiles.dA})
    assert_disjoint_and_filling(ranges, found.end)


def test_there_are_as_many_tiles_as_blocks_cover_what_is_computed():
    assert tasks.forward_tiles(70, 90, 20, 32, 64, 16) == (3, 2, 2, 6, 6)
    everything = tasks.backward_tiles(70, 90, 130, 20, True, True, True, 32, 64, 128, 16, 64)
    assert everything == (3, 2, 2, 6, 6, 4, 6)
    only_dB = tasks.backward_tiles(70, 90, 130, 20, False, False, True, 32, 64, 128, 16, 64)
    assert (only_dB.q, only_dB.dx, only_dB.dB, only_dB.dA) == (0, 0, 4, 0)


def test_projections_that_share_x_have_the_tiles_of_their_columns_and_share_those_of_p_and_dx():
    found = tasks.group_forward_tiles(70, 90, 64, 1, 20, 32, 64, 16)
    assert found == (3, 2 + 1 + 1, 2, 6, 12)
    assert found.p == tasks.forward_tiles(70, 90, 20, 32, 64, 16).p
    found = tasks.group_backward_tiles(70, 90, 64, 1, 130, 20, 3, 32, 64, 128, 16, 64)
    assert found == (3, 2, 2, 3 * 6, 6, 4 * 2, 3 * 6)
    two = tasks.group_backward_tiles(70, 90, 64, 0, 130, 20, 2, 32, 64, 128, 16, 64)
    assert (two.q, two.dB, two.dA) == (2 * 6, 3 * 2, 2 * 6)


def test_y_tiles_follow_p_tiles():
    tiles = tasks.forward_tiles(70, 90, 20, 32, 64, 16)
    assert tasks.forward_tickets(tiles, 3, 2) == (18, 18 + 12)


@pytest.mark.parametrize(("M", "N", "rows"), [(90, 70, 32), (129, 4096, 1)], ids=["short", "many tiles"])
def test_gradients_stand_between_the_halves_of_dx(M, N, rows):
    tiles = tasks.backward_tiles(M, N, 100, 20, True, True, True, rows, 64, 128, 16, 64)
    found = tasks.backward_tickets(tiles, M, N, 2, 3, 5)
    num_dx, num_gradients = 3 * tiles.dx, 5 * (tiles.dB + tiles.dA)
    assert found.dx == 2 * tiles.q
    assert (found.gradients, found.num_gradients) == (found.dx + num_dx // 2, num_gradients)
    assert found.end == found.dx + num_dx + num_gradients


def test_gradients_come_last_where_dx_has_few_tiles_that_take_longer():
    tiles = tasks.backward_tiles(70, 90, 130, 20, True, True, True, 32, 64, 128, 16, 64)
    found = tasks.backward_tickets(tiles, 70, 90, 2, 3, 5)
    assert (found.dx, found.gradients, found.num_gradients) == (12, 12 + 18, 50)
    assert found.end == 12 + 18 + 50
