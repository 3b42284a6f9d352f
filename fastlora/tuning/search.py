"""Searches tiles for a GPU, one shape class after another, and writes the resulting table.

For every shape class of the 16-bit entries, forward and backward, each candidate is checked against fp64.
Then all are timed in turn, together with the vendor's matrix product with the low-rank product accumulated
onto it. The tile with the least geometric mean over the class's shapes wins, if it beats the table's beyond
the noise.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.routes.architecture import architecture_of
from fastlora.tuning.candidates import DRY_SHAPES, SHAPES, candidates, dry_candidates
from fastlora.tuning.contest import Contest, dtype_of
from fastlora.tuning.outcome import RANK, Outcome
from fastlora_kernels.choice_content import VENDOR
from fastlora_kernels.configs import shape_class, table_of
from fastlora_kernels.tables import ARCHITECTURES, Table, Tile, Win, write_table


class Field(NamedTuple):
    """What competes in one class and direction.

    Attributes:
        shape_class: The class.
        direction: "forward" or "backward".
        tiles: The table's first.
        shapes: (M, K, N) of the contests.
    """

    shape_class: str
    direction: str
    tiles: tuple[Tile, ...]
    shapes: tuple[tuple[int, int, int], ...]


def fields(table: Table, *, dry: bool) -> Iterator[Field]:
    """The classes of the table's 16-bit entries, those that training takes most first."""
    listed = DRY_SHAPES if dry else SHAPES
    propose = dry_candidates if dry else candidates
    for name, entry in reversed(table.entries["half"].items()):
        for direction in ("forward", "backward"):
            shapes = tuple(
                (M, K, N)
                for M, K, N in listed[name]
                if shape_class(table, "half", M, N if direction == "forward" else K, direction) == name
            )
            if shapes:
                yield Field(name, direction, propose(name, direction, getattr(entry, direction)), shapes)


def tune(device: torch.device, out: Path, seconds: float, here: Mapping[str, Any]) -> dict[str, Any]:
    """Run the search.

    Args:
        device: Whose tiles; a CPU runs every step in the interpreter, and its choices mean nothing.
        out: Folder for tuning.json, with every measurement, and tables/ARCHITECTURE.json: to be committed in
            the place of the package's own, or used from where it is with FASTLORA_TABLES=OUT/tables.
        seconds: No class is begun later than this.
        here: Where this is, for the files: a "device" with its "name", the "commit", and what else is known.

    Returns:
        passed, a summary, failures and seconds.
    """
    start = time.monotonic()
    architecture = architecture_of(device)
    table = table_of(architecture)
    dtype = dtype_name(dtype_of(device))
    found: list[dict[str, Any]] = []
    better = 0
    for field in fields(table, dry=device.type == "cpu"):
        if time.monotonic() - start > seconds:
            break
        outcomes = [
            Contest(device, field.direction, problem_of(device, shape)).run(field.tiles)
            for shape in field.shapes
        ]
        best, library, unfit = fitting_winner(architecture, field, outcomes)
        table = with_choice(table, field, best, library=library, dtype=dtype)
        better += best != field.tiles[0]
        found.append(
            {
                "shape_class": field.shape_class,
                "direction": field.direction,
                "chosen": best._asdict(),
                "library": library,
                "unfit": unfit,
                "contests": [outcome.as_dict() for outcome in outcomes],
            }
        )
        _write(out, architecture, table, {**here, "architecture": architecture, "fields": found})
    failures = [line for field in found for contest in field["contests"] for line in contest["failures"]]
    return {
        "passed": bool(found),
        "summary": f"{len(found)} passes of classes, {better} with a better tile; {len(failures)} failed",
        "failures": failures,
        "seconds": round(time.monotonic() - start, 1),
    }


def problem_of(device: torch.device, shape: tuple[int, int, int]) -> Problem:
    """The problem of a contest for a tile table."""
    dtype = dtype_of(device)
    return Problem(*shape, RANK, dtype, dtype)


def _write(out: Path, architecture: str, table: Table, content: Mapping[str, Any]) -> None:
    """Leave what was found so far, complete: a run that is ended loses only the class that it was at."""
    measured = {"device": str(content["device"]["name"]), "commit": content["commit"] or ""}
    measured["results"] = "tuning.json"
    (out / "tables").mkdir(parents=True, exist_ok=True)
    (out / "tuning.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_table(table._replace(measured=measured), out / "tables" / f"{architecture}.json")


def fitting_winner(
    architecture: str, field: Field, outcomes: Sequence[Outcome]
) -> tuple[Tile, bool, list[str]]:
    """`winner` among the tiles that compile within the rules, and why others that won were turned down.

    A contest has few ranks, no dropout and adapters in x's dtype; an entry of the table serves calls with
    more as well, which take more shared memory and registers.
    """
    tiles, unfit = list(field.tiles), list[str]()
    while True:
        best, library = winner(tiles, outcomes)
        found = [] if best == field.tiles[0] else _faults(architecture, field, best)
        if not found:
            return best, library, unfit
        unfit += found
        tiles.remove(best)


def _faults(architecture: str, field: Field, tile: Tile) -> list[str]:
    """What is wrong with a tile's most demanding variants, compiled; nothing in the interpreter."""
    # Triton reads TRITON_INTERPRET when it is imported.
    from fastlora_kernels.compile_check import rules, variants

    if architecture not in ARCHITECTURES:
        return []
    cases = variants.tile_cases(
        architecture, "half", field.shape_class, field.direction, tile, every_variant=False
    )
    return [f"{line}: {fault}" for line, found in map(rules.check, cases) for fault in found]


def winner(tiles: Sequence[Tile], outcomes: Sequence[Outcome]) -> tuple[Tile, bool]:
    """The tile to take, and whether the vendor's library is faster than it.

    Another tile than the first, and the library, must win beyond the noise: by the upper quartile of its
    ratio, in the geometric mean over the contests. A tile that failed in one of them is out.
    """
    current = tiles[0]
    sound = [tile for tile in tiles if all(tile in outcome.times for outcome in outcomes)]
    if not sound:
        return current, False
    if current not in sound:
        current = sound[0]
    scores = {tile: _score(outcomes, tile, current) for tile in sound if tile != current}
    best = min(scores, key=scores.__getitem__, default=current)
    if scores.get(best, math.inf) >= 1:
        best = current
    return best, _score(outcomes, VENDOR, best) < 1


def _score(outcomes: Sequence[Outcome], one: Tile | str, other: Tile) -> float:
    return math.exp(sum(math.log(outcome.ratio(one, other).q75) for outcome in outcomes) / len(outcomes))


def with_choice(table: Table, field: Field, tile: Tile, *, library: bool, dtype: str) -> Table:
    """The table with one pass of one class of the 16-bit entries changed.

    Whether the library won counts for what its contests were held in alone, `dtype` and RANK.
    """
    half = dict(table.entries["half"])
    entry = half[field.shape_class]
    kept = [win for win in entry.library if win.direction != field.direction]
    wins = kept + [Win(field.direction, dtype, RANK)] * library
    half[field.shape_class] = entry._replace(**{field.direction: tile}, library=tuple(sorted(wins)))
    return table._replace(entries={**table.entries, "half": half})


def compile_share(device: torch.device, number: int, of: int) -> dict[str, Any]:
    """Run every `of`-th candidate once, from `number` on; one that does not fit is left to the contest."""
    table = table_of(architecture_of(device))
    todo = [(field, tile) for field in fields(table, dry=device.type == "cpu") for tile in field.tiles]
    ran = 0
    for field, tile in todo[number::of]:
        problem = problem_of(device, field.shapes[0])
        ran += Contest(device, field.direction, problem, num_sets=1).try_once(tile)
    return {"passed": True, "summary": f"{ran} candidates ran", "ran": ran}
