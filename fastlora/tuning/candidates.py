"""The tiles that a tuning run tries for each shape class, and the shapes that it tries them on."""

from __future__ import annotations

from typing import Final

from fastlora_kernels.tables import Tile, tile_of

# (M, K, N). A class is judged by the geometric mean over its shapes, forward and backward by those whose
# output is of the class.
SHAPES: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "few": ((1, 4096, 4096), (16, 4096, 14336), (8, 4096, 1024)),
    "low": ((64, 4096, 4096), (32, 14336, 4096)),
    "narrow": ((65_536, 784, 10), (8192, 64, 64), (65_536, 10, 1000)),
    "square": ((512, 4096, 4096), (128, 4096, 14336), (1024, 4096, 1024)),
    "wide": ((8192, 4096, 4096), (8192, 14336, 4096), (2048, 4096, 14336)),
}

# In a dry run, which the interpreter runs: one class for all.
DRY_SHAPES: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {"square": ((24, 24, 16),)}

# (rows, columns, step, num_warps, num_stages)
_TRIED: Final[dict[str, tuple[tuple[int, int, int, int, int], ...]]] = {
    "few": (
        (16, 64, 128, 4, 4),
        (16, 64, 128, 4, 6),
        (16, 64, 256, 4, 3),
        (16, 128, 128, 4, 4),
        (16, 128, 64, 4, 6),
        (16, 64, 128, 2, 4),
    ),
    "low": (
        (64, 64, 64, 4, 4),
        (64, 64, 64, 4, 6),
        (64, 64, 128, 4, 4),
        (64, 128, 64, 4, 4),
        (64, 128, 64, 4, 6),
        (32, 64, 128, 4, 4),
    ),
    "narrow": ((128, 64, 64, 4, 4), (128, 64, 64, 8, 4), (64, 64, 64, 4, 4), (256, 64, 64, 8, 3)),
    "square": (
        (128, 128, 64, 8, 4),
        (128, 128, 64, 8, 3),
        (128, 128, 64, 4, 3),
        (64, 128, 64, 4, 4),
        (64, 256, 64, 4, 4),
        (64, 64, 64, 4, 6),
    ),
    "wide": (
        (128, 256, 64, 8, 4),
        (128, 256, 64, 8, 3),
        (256, 128, 64, 8, 4),
        (256, 128, 64, 8, 3),
        (128, 128, 64, 4, 3),
        (128, 128, 64, 8, 3),
        (128, 256, 32, 8, 4),
    ),
}


def candidates(shape_class: str, direction: str, current: Tile) -> tuple[Tile, ...]:
    """The tile in the table first, then the others to try: shapes, warps and stages, then bands of L2."""
    shapes = [tile_of(direction, *tried[:3], current.group, *tried[3:]) for tried in _TRIED[shape_class]]
    bands = [current._replace(group=group) for group in (4, 16)] if shape_class == "wide" else []
    return tuple(dict.fromkeys([current, *shapes, *bands]))


def dry_candidates(shape_class: str, direction: str, current: Tile) -> tuple[Tile, ...]:
    """Two tiles: enough to go through every step."""
    return (current, current._replace(block_m=16))
