"""Search tiles for this GPU: `python -m bench.tuning --device cuda --out DIR`.

For every shape class of the 16-bit entries, forward and backward: each candidate is held to fp64, then all
are timed in turn, beside the vendor's product with the low-rank part accumulated onto it. The tile with the
least geometric mean over the class's shapes is kept where it beats the table's beyond the noise. DIR gets
tuning.json with every measurement, and tables/ARCHITECTURE.json: to be committed in the place of the
package's own, or used from where it is with FASTLORA_TABLES=DIR/tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from bench.candidates import DRY_SHAPES, SHAPES, candidates, dry_candidates
from bench.contest import LIBRARY, RANK, Contest, Outcome, dtype_of
from bench.environment import Environment, environment
from bench.process import run_module
from fastlora.plan import architecture_of
from fastlora_kernels.configs import shape_class, table_of
from fastlora_kernels.tables import ARCHITECTURES, Table, Tile, Win, write_table

_COMPILERS: Final = 8
_COMPILE_SECONDS: Final = 120


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


def tune(device: torch.device, out: Path, seconds: float, commit: str | None = None) -> dict[str, Any]:
    """Run the search; a correctness step's result.

    Args:
        device: Whose tiles; a CPU runs every step in the interpreter, and its choices mean nothing.
        out: Folder for tuning.json and tables/.
        seconds: No class is begun later than this.
        commit: Of the sources, where they are a copy without .git.
    """
    start = time.monotonic()
    architecture = architecture_of(device)
    table = table_of(architecture)
    dtype = str(dtype_of(device)).removeprefix("torch.")
    found: list[dict[str, Any]] = []
    better = 0
    for field in fields(table, dry=device.type == "cpu"):
        if time.monotonic() - start > seconds:
            break
        outcomes = [Contest(device, field.direction, shape).run(field.tiles) for shape in field.shapes]
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
        _write(out, architecture, table, found, environment(device, commit))
    failures = [
        failure for field in found for contest in field["contests"] for failure in contest["failures"]
    ]
    return {
        "passed": bool(found),
        "summary": f"{len(found)} passes of classes, {better} with a better tile; {len(failures)} failed",
        "failures": failures,
        "seconds": round(time.monotonic() - start, 1),
    }


def _write(
    out: Path, architecture: str, table: Table, found: list[dict[str, Any]], here: Environment
) -> None:
    """Leave what was found so far, complete: a run that is ended loses only the class that it was at."""
    measured = {"device": str(here.device["name"]), "commit": here.commit or "", "results": "tuning.json"}
    text = json.dumps({**here._asdict(), "architecture": architecture, "fields": found}, indent=2)
    (out / "tuning.json").write_text(text + "\n", encoding="utf-8")
    (out / "tables").mkdir(exist_ok=True)
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
    return best, _score(outcomes, LIBRARY, best) < 1


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


def compile_all(device: torch.device) -> dict[str, Any]:
    """Compile the candidates in several processes; Triton keeps what they made on disk. A step's result."""
    start = time.monotonic()
    count = _COMPILERS if device.type == "cuda" else 1

    def share(number: int) -> dict[str, Any]:
        arguments = ["--share", str(number), "--of", str(count)]
        return run_module("bench.tuning", arguments, device, _COMPILE_SECONDS)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(share, range(count)))
    unwell = [part["summary"] for part in found if not part["passed"]]
    ran = sum(part.get("ran", 0) for part in found)
    return {
        "passed": not unwell,
        "finished": all(part["finished"] for part in found),
        "summary": "; ".join([f"{ran} candidates compiled and run once", *unwell]),
        "seconds": round(time.monotonic() - start, 1),
    }


def compile_share(device: torch.device, number: int, of: int) -> dict[str, Any]:
    """Run every `of`-th candidate once, from `number` on; one that does not fit is left to the contest."""
    table = table_of(architecture_of(device))
    todo = [(field, tile) for field in fields(table, dry=device.type == "cpu") for tile in field.tiles]
    ran = 0
    for field, tile in todo[number::of]:
        ran += Contest(device, field.direction, field.shapes[0], num_sets=1).try_once(tile)
    return {"passed": True, "summary": f"{ran} candidates ran", "ran": ran}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out", type=Path, help="folder for tuning.json and tables/")
    parser.add_argument(
        "--seconds", type=float, default=120, help="begin no class later (default: %(default)s)"
    )
    parser.add_argument("--commit", help="the commit, where the sources are a copy without .git")
    parser.add_argument("--compiled", action="store_true", help="the candidates have been compiled already")
    parser.add_argument("--share", type=int, help="only compile, from this candidate on")
    parser.add_argument("--of", type=int, default=1, help="of so many shares (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.out is None and options.share is None:
        parser.error("--out must name a folder, unless only a --share is compiled")
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    device = torch.device(options.device)
    torch.manual_seed(0)
    if options.share is not None:
        found = compile_share(device, options.share, options.of)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.compiled:
            compile_all(device)
        found = tune(device, options.out, options.seconds, options.commit)
    print(json.dumps(found))  # noqa: T201
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
