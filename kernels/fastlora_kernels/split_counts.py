"""How many programs share a tile (`split_k.py`): for the host, which sizes a launch."""

from typing import Final, NamedTuple

from fastlora_kernels.configs import num_blocks
from fastlora_kernels.tables import Table
from fastlora_kernels.tasks import BackwardTickets

# The fewest loop steps of a split (the last may have fewer): less would not fill the pipeline.
_FEWEST_STEPS: Final = 4


class Tiles(NamedTuple):
    """The tiles of one kind, such as p's or y's.

    Attributes:
        count: How many there are.
        steps: Loop steps of each.
        columns: Columns of each, which are columns of the right operand's blocks too.
    """

    count: int
    steps: int
    columns: int


class Blocks(NamedTuple):
    """What the tiles of a pass have in common.

    Attributes:
        rows: Rows of a tile, and of the left operand's blocks.
        step: Elements along the contraction in a step.
        element: Bytes of one.
    """

    rows: int
    step: int
    element: int


def split_k(table: Table, tiles: int, steps: int) -> int:
    """How many programs share each of these tiles, so that all multiprocessors have work.

    Args:
        table: The architecture's.
        tiles: Number of tiles.
        steps: Loop steps of a tile.
    """
    if tiles == 0 or steps == 0:
        return 1
    most = max(1, min(table.multiprocessors // tiles, steps // _FEWEST_STEPS))
    return _without_empty(steps, most)


def split_beside(table: Table, small: Tiles, large: Tiles, blocks: Blocks) -> int:
    """How many programs share a tile of p (or q), which come first and hand over to those of y (or dx).

    As many as the last wave of y's programs leaves multiprocessors for. With more of them, that many
    programs of y start late. With so few that one loads more than 4/5 of what a program of y does, p might be
    late itself; then as many as `split_k` gives are shorter.

    Args:
        table: The architecture's.
        small: The tiles of p or q.
        large: Those of y or dx, each shared by as many programs as `split_k` gives.
        blocks: What both have in common.
    """
    most = split_k(table, small.count, small.steps)
    split_large = split_k(table, large.count, large.steps)
    fitting = -(large.count * split_large) % table.multiprocessors // max(1, small.count)
    if not 0 < fitting < most:
        return most
    if 5 * _loaded(small, fitting, blocks) > 4 * _loaded(large, split_large, blocks):
        return most
    return _without_empty(small.steps, fitting)


def split_of_q(table: Table, q: Tiles, dx: Tiles, blocks: Blocks, tickets: BackwardTickets) -> int:
    """How many programs share a q tile: as `split_beside` gives it, if all dx tiles come before dB and dA.

    Else as many as have work: programs of dA wait for q while dx tiles are still to start.
    """
    if tickets.gradients + tickets.num_gradients == tickets.end:
        return split_beside(table, q, dx, blocks)
    return split_k(table, q.count, q.steps)


def _loaded(tiles: Tiles, split: int, blocks: Blocks) -> int:
    """Bytes that the last of a tile's programs loads: its blocks, and the splits that it sums."""
    steps = num_blocks(tiles.steps, split)
    fp32_tiles = split if split > 1 else 0
    operands = steps * (blocks.rows + tiles.columns) * blocks.step * blocks.element
    return operands + fp32_tiles * blocks.rows * tiles.columns * 4


def _without_empty(steps: int, split: int) -> int:
    """The splits that have steps: all but the last have equally many, rounded up."""
    return num_blocks(steps, num_blocks(steps, split))
