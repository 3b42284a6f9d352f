"""What runs in the interpreter: each case is one call of both passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

from fastlora.formula.operands import EVERYTHING, Needs
from fastlora_kernels.tables import Tile, load_table, tile_of


class Case(NamedTuple):
    """One call.

    Attributes:
        architecture: The tile table's name.
        capability: The target's; 0 means the architecture's own.
        dtype: "bf16", "fp16" or "fp32", of x, W, b and dy.
        adapter: Of A and B; "" means as `dtype`.
        precision: Of fp32 products, "ieee" or "tf32".
        M, K, N, r: The shape.
        dropout: The rate.
        bias: Whether there is a b.
        needs: Which gradients are computed.
        tiles: Of (forward, backward); None means the table's.
        shape_class: The class of the table that the call must take; "" where it does not matter.
        layouts: How operands lie in memory, by name.
        passes: Which run.
        seeds: Of the schedules; None is all warps in step.
        resident: CTAs at a time; 0 means as many as there is room for.
        reads_mask: Whether operands are such that p, or dx and dA, are the dropout mask itself.
        values: Where p and q lie: "beyond fp16", "below fp16", or "" for near 1.
        persistent: Columns of a tile of the persistent kernels for sm_90, which then run; 0 means the plain
            ones.
        programs: Of a launch of persistent kernels.
        dora: Whether columns are scaled.
    """

    architecture: str
    capability: int = 0
    dtype: str = "bf16"
    adapter: str = ""
    precision: str = "ieee"
    M: int = 50
    K: int = 200
    N: int = 104
    r: int = 16
    dropout: float = 0.0
    bias: bool = True
    needs: Needs = EVERYTHING
    tiles: tuple[Tile | None, Tile | None] = (None, None)
    shape_class: str = ""
    layouts: tuple[tuple[str, str], ...] = ()
    passes: tuple[str, ...] = ("forward", "backward")
    seeds: tuple[int | None, ...] = (None,)
    resident: int = 0
    reads_mask: bool = False
    values: str = ""
    persistent: int = 0
    programs: int = 3
    dora: bool = False

    @property
    def target(self) -> int:
        """The capability to compile for."""
        return self.capability or int(self.architecture.removeprefix("sm_"))

    @property
    def variant(self) -> str:
        """What is special about it, in words."""
        adapter = f"/{self.adapter}" if self.adapter not in ("", self.dtype) else ""
        words = [f"{self.dtype}{adapter}" + f" {self.precision}" * (self.dtype == "fp32")]
        words += [self.shape_class] * bool(self.shape_class)
        words += [f"persistent, {self.persistent} columns"] * bool(self.persistent)
        words += [f"dropout {self.dropout}"] * bool(self.dropout) + ["no bias"] * (not self.bias)
        if self.needs != EVERYTHING:
            words.append("only " + " ".join(name for name, need in self.needs._asdict().items() if need))
        words += [f"{name} {how}" for name, how in self.layouts]
        words += [one for one in self.passes if len(self.passes) == 1]
        words += [f"{self.resident} resident"] * bool(self.resident)
        words += ["the mask itself"] * self.reads_mask + [self.values] * bool(self.values)
        words += ["DoRA"] * self.dora
        return ", ".join(words)

    @property
    def shape(self) -> str:
        """M x K x N, and the rank."""
        return f"{self.M}x{self.K}x{self.N} r{self.r}"


def small_tiles(architecture: str, kind: str) -> tuple[Tile, Tile]:
    """Tiles (forward, backward) that are quick to compile and to run; 64 rows are what wgmma takes."""
    rows = 64 if architecture == "sm_90" and kind != "ieee" else 32
    step = {"half": 64, "tf32": 32, "ieee": 16}[kind]
    stages = 2 if kind == "ieee" else 3
    forward = tile_of("forward", rows, 64, step, 2, 4, stages)
    return forward, tile_of("backward", rows, 64, step, 2, 4, stages)


ALIGNED: Final = {"M": 50, "K": 200, "N": 104}
RAGGED: Final = {"M": 50, "K": 203, "N": 101}
# Nine steps of 64: the plan splits the tiles.
SPLIT: Final = {"M": 70, "K": 584, "N": 520}
# On sm_80 y and dx leave 3 and 18 of 108 multiprocessors: p stays whole, q is split in six and not eight.
FILLED: Final = {"M": 70, "K": 584, "N": 2200}
# (dtype, adapter, precision, kind of the table)
KINDS: Final = (
    ("fp16", "fp16", "ieee", "half"),
    ("bf16", "bf16", "ieee", "half"),
    ("bf16", "fp32", "ieee", "half"),
    ("fp16", "fp32", "ieee", "half"),
    ("fp32", "fp32", "tf32", "tf32"),
    ("fp32", "fp32", "ieee", "ieee"),
)


def _small(architecture: str, kind: tuple[str, str, str, str], **options: object) -> Case:
    dtype, adapter, precision, name = kind
    case = Case(architecture, dtype=dtype, adapter=adapter, precision=precision)
    return case._replace(tiles=small_tiles(architecture, name), **options)


def quick_cases() -> list[Case]:
    """Every kind of product once, both architectures, dropout, ragged edges, splits, and another schedule."""
    fp16, bf16, bf16_wide, fp16_wide, tf32, ieee = KINDS
    return [
        _small("sm_80", bf16, dropout=0.25, r=24, **RAGGED),
        _small("sm_80", bf16_wide, seeds=(None, 1), M=45, K=520, N=40),
        _small("sm_80", fp16_wide, values="beyond fp16", M=40, K=72, N=40),
        _small("sm_80", tf32, M=50, K=72, N=40),
        _small("sm_80", ieee, M=33, K=40, N=35, passes=("forward",)),
        _small("sm_90", fp16, dropout=0.25, seeds=(None, 1), M=70, K=136, N=72),
    ]


def all_cases() -> Iterator[Case]:
    """Everything, the quick ones first."""
    yield from quick_cases()
    for architecture in ("sm_80", "sm_90"):
        yield from _dtypes(architecture)
        yield from _ranks(architecture)
        yield from _range(architecture)
        yield from _needs(architecture)
        yield from _layouts(architecture)
        yield from _tiny(architecture)
        yield from _masks(architecture)
        yield from _schedules(architecture)
        yield from _dora(architecture)
    yield _small("sm_80", KINDS[1], seeds=(None, 1), **FILLED)
    for architecture, capability in (("sm_80", 80), ("sm_86", 86), ("sm_86", 89), ("sm_90", 90)):
        yield from _table(architecture, capability)


def _dtypes(architecture: str) -> Iterator[Case]:
    for kind, dropout in itertools.product(KINDS, (0.0, 0.3)):
        for shape in (ALIGNED, RAGGED):
            yield _small(architecture, kind, dropout=dropout, **shape)
        yield _small(architecture, kind, dropout=dropout, seeds=(None, 1), **SPLIT)
    mixed = (
        ("fp32", "bf16", "ieee", "ieee"),
        ("fp32", "fp16", "tf32", "tf32"),
        ("bf16", "fp16", "ieee", "half"),
    )
    for kind in mixed:
        yield _small(architecture, kind, dropout=0.25, **ALIGNED)


def _ranks(architecture: str) -> Iterator[Case]:
    for r, kind in itertools.product((1, 8, 24, 64, 100), (KINDS[1], KINDS[2], KINDS[4], KINDS[5])):
        yield _small(
            architecture, kind, r=r, dropout=0.25 * (r in (8, 100)), **(RAGGED if r % 8 else ALIGNED)
        )


def _range(architecture: str) -> Iterator[Case]:
    fp16_bf16 = ("fp16", "bf16", "ieee", "half")
    for kind, values in itertools.product((KINDS[0], KINDS[3], fp16_bf16), ("beyond fp16", "below fp16")):
        if kind != KINDS[0] or values == "beyond fp16":
            yield _small(architecture, kind, values=values, **ALIGNED)
            yield _small(architecture, kind, values=values, dropout=0.25, r=40, **RAGGED)


def _needs(architecture: str) -> Iterator[Case]:
    for needs in itertools.product((False, True), repeat=3):
        if any(needs) and not all(needs):
            for kind in (KINDS[1], KINDS[5]):
                yield _small(architecture, kind, needs=Needs(*needs), dropout=0.25, **ALIGNED)


def _layouts(architecture: str) -> Iterator[Case]:
    ways = (
        (("x", "transposed"),),
        (("W", "odd rows"),),
        (("x", "padded rows"), ("W", "padded rows"), ("dy", "padded rows"), ("A", "padded rows")),
        (("x", "shifted"),),
        (("x", "every other"), ("dy", "every other")),
        (("W", "transposed"), ("A", "transposed"), ("B", "transposed")),
        (("dy", "transposed"),),
        (("dy", "expanded"),),
        (("A", "odd rows"), ("B", "shifted")),
    )
    for layouts in ways:
        yield _small(architecture, KINDS[1], layouts=layouts, **ALIGNED)
        yield _small(architecture, KINDS[1], layouts=layouts, bias=False, dropout=0.4, **RAGGED)
    yield _small(architecture, KINDS[4], layouts=(("x", "transposed"),), **ALIGNED)
    yield _small(architecture, KINDS[5], layouts=(("x", "transposed"), ("W", "odd rows")), **RAGGED)


def _tiny(architecture: str) -> Iterator[Case]:
    shapes = (
        (1, 1, 1, 1),
        (1, 200, 104, 16),
        (50, 1, 104, 8),
        (50, 200, 1, 8),
        (3, 5, 7, 16),
        (17, 16, 1, 2),
    )
    for number, (M, K, N, r) in enumerate(shapes):
        for kind in (KINDS[1], KINDS[2], KINDS[4], KINDS[5]):
            yield _small(architecture, kind, M=M, K=K, N=N, r=r, dropout=0.5 * (number % 2))


def _masks(architecture: str) -> Iterator[Case]:
    for kind, one in itertools.product((KINDS[1], KINDS[5]), ("forward", "backward")):
        shape = {"M": 72, "K": 72, "N": 72, "r": 72, "passes": (one,), "bias": False}
        yield _small(architecture, kind, dropout=0.3, reads_mask=True, **shape)


def _schedules(architecture: str) -> Iterator[Case]:
    seeds = (None, 0, 1, 2, 3, 4)
    for resident in (0, 1, 2):
        yield _small(architecture, KINDS[1], seeds=seeds, resident=resident, r=100, M=150, K=584, N=72)


def _dora(architecture: str) -> Iterator[Case]:
    for kind in KINDS:
        yield _small(architecture, kind, dora=True, **RAGGED)
        yield _small(architecture, kind, dora=True, dropout=0.25, bias=False, seeds=(None, 1), **ALIGNED)
    yield _small(architecture, KINDS[1], dora=True, **SPLIT)


def _table(architecture: str, capability: int) -> Iterator[Case]:
    """Each entry of the table at a shape that takes it, whole, and split where it can be."""
    for kind, classes in load_table(architecture).entries.items():
        dtype = "bf16" if kind == "half" else "fp32"
        for name, entry in classes.items():
            case = Case(architecture, capability, dtype, precision="tf32" if kind == "tf32" else "ieee")
            case = case._replace(shape_class=name, M={"few": 13, "low": 50, "wide": 1530}.get(name, 150))
            forward = case._replace(passes=("forward",))
            backward = case._replace(passes=("backward",))
            if name == "wide":
                yield forward._replace(K=72, N=2808)
                yield backward._replace(K=2808, N=72, dropout=0.25)
                continue
            columns = 40 if name == "narrow" else 104
            yield forward._replace(K=136, N=columns)
            yield backward._replace(K=columns, N=136)
            yield forward._replace(K=8 * entry.forward.block_k + 8, N=columns, dropout=0.25, seeds=(None, 0))
            yield backward._replace(
                K=columns, N=8 * entry.backward.block_n + 8, dropout=0.25, seeds=(None, 0)
            )
            yield forward._replace(K=135, N=columns - 3)
            yield backward._replace(K=columns - 3, N=135)
