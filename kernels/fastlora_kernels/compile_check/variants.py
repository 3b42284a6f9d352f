"""Which kernels the check compiles: for every tile table entry, its most demanding variants or all."""

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

from triton.backends.compiler import GPUTarget

from fastlora_kernels.configs import rank_block, takes_tma
from fastlora_kernels.tables import Tile, load_table

TARGETS: Final = {
    "sm_80": [GPUTarget("cuda", 80, 32)],
    "sm_86": [GPUTarget("cuda", 86, 32), GPUTarget("cuda", 89, 32)],
    "sm_90": [GPUTarget("cuda", 90, 32)],
    "sm_100": [GPUTarget("cuda", 100, 32)],
    "gfx942": [GPUTarget("hip", "gfx942", 64)],
}


class Variant(NamedTuple):
    """What a kernel is specialized for, in addition to its tile.

    Attributes:
        element: "bf16", "fp16" or "fp32", the dtype of x, W and b.
        adapter: The dtype of A and B.
        r: The rank.
        tma: Whether x, W and dy come through tensor descriptors.
        precision: "tf32" or "ieee", for fp32.
        dropout: Whether the low-rank branch has dropout.
        bias: Whether there is a bias; for the forward kernel only.
        split_k: Whether several programs share a y or dx tile.
        tma_store: Whether y and dx are stored through tensor descriptors; None means as `tma`.
        dora: Whether columns are scaled, and z is stored.
    """

    element: str = "bf16"
    adapter: str = "bf16"
    r: int = 16
    tma: bool = False
    precision: str = "ieee"
    dropout: bool = False
    bias: bool = True
    split_k: bool = False
    tma_store: bool | None = None
    dora: bool = False

    @property
    def stores_through_tma(self) -> bool:
        """Whether y and dx are stored through tensor descriptors."""
        return self.tma if self.tma_store is None else self.tma_store

    @property
    def kind(self) -> str:
        """The element kind of the tile table."""
        return self.precision if self.element == "fp32" else "half"

    @property
    def tf32_terms(self) -> bool:
        """Whether A and B are multiplied in tf32 with an fp16 x."""
        return self.element == "fp16" and self.adapter != "fp16"

    @property
    def wide_adapters(self) -> bool:
        """Whether the dtype of A and B has more bits than x's, or a range that fp16 has not."""
        return self.adapter != self.element and (self.adapter == "fp32" or self.element == "fp16")

    def block_r(self, architecture: str, tile: Tile) -> int:
        """Ranks in a block of a layer's kernel with a tile."""
        masked_rows = tile.block_m if self.dropout else 0
        dtypes = self.kind, self.wide_adapters, self.tf32_terms
        return rank_block(self.r, architecture, *dtypes, masked_rows)


class Case(NamedTuple):
    """One kernel to compile."""

    architecture: str
    kind: str
    shape_class: str
    direction: str
    tile: Tile
    variant: Variant
    target: GPUTarget

    def __str__(self) -> str:
        variant = self.variant
        return (
            f"{self.target.arch} {self.kind} {self.shape_class}, {self.direction}, {variant.element} with "
            f"{variant.adapter} adapters, r={variant.r}, {_way(variant)}"
            f"{', dropout' if variant.dropout else ''}{', bias' if variant.bias else ''}"
            f"{', split-K' if variant.split_k else ''}{', DoRA' if variant.dora else ''}"
        )


def _way(variant: Variant) -> str:
    loads, stores = ("TMA" if tma else "pointers" for tma in (variant.tma, variant.stores_through_tma))
    return loads if loads == stores else f"loads by {loads}, stores by {stores}"


def cases(architectures: list[str], *, every_variant: bool) -> Iterator[Case]:
    """The kernels to compile: of each entry and target the most demanding variants, or all of them."""
    for architecture in architectures:
        for kind, classes in load_table(architecture).entries.items():
            for (shape_class, entry), direction in itertools.product(
                classes.items(), ("forward", "backward")
            ):
                tile = getattr(entry, direction)
                where = (architecture, kind, shape_class, direction, tile)
                yield from tile_cases(*where, every_variant=every_variant)


def representative_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Case]:
    """As `cases`, for kernels that are the plain ones' kin: fp32 adapters on bf16, and square tiles in tf32.

    They are compiled for sm_80 and sm_90; the others are left to `every_variant`: a gate must end within the
    hour.
    """
    for case in cases(architectures, every_variant=every_variant):
        dtypes = case.variant.element, case.variant.adapter
        chosen = dtypes == ("bf16", "fp32") or (case.kind, case.shape_class) == ("tf32", "square")
        if every_variant or (chosen and case.target.arch in (80, 90)):
            yield case


def dora_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Case]:
    """As `cases`, with columns that are scaled, which makes two kernels of each.

    Without `every_variant` only fp32 adapters on bf16 in the largest tiles of sm_80 and sm_90.
    """
    for case in cases(architectures, every_variant=every_variant):
        dtypes = case.variant.element, case.variant.adapter
        chosen = dtypes == ("bf16", "fp32") and case.shape_class in ("square", "wide")
        if every_variant or (chosen and case.target.arch in (80, 90)):
            yield case._replace(variant=case.variant._replace(dora=True))


def tile_cases(
    architecture: str, kind: str, shape_class: str, direction: str, tile: Tile, *, every_variant: bool
) -> Iterator[Case]:
    """The kernels of one tile, whether or not it is in the table."""
    make = all_variants if every_variant else demanding_variants
    for target in TARGETS[architecture]:
        # Wide tiles are never split: there are enough of them for every multiprocessor.
        for variant in make(
            kind, direction, tma=takes_tma(architecture, kind), split_k=shape_class != "wide"
        ):
            yield Case(architecture, kind, shape_class, direction, tile, variant, target)


def demanding_variants(kind: str, direction: str, *, tma: bool, split_k: bool) -> list[Variant]:
    """The variants that take most shared memory (p and q are fp32 in the pipeline) and most registers.

    fp32 adapters on fp16 are multiplied in tf32.
    """
    bias = direction == "forward"
    if kind == "half":
        return [
            Variant(element, adapter, 64, tma, dropout=True, bias=bias, split_k=split_k)
            for element, adapter in (("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp32"))
        ]
    return [Variant("fp32", "fp32", 64, tma, kind, dropout=True, bias=bias, split_k=split_k)]


def all_variants(kind: str, direction: str, *, tma: bool, split_k: bool) -> Iterator[Variant]:
    """Every dtype, adapter dtype, way of loading, dropout and bias; then every block of ranks."""
    dtypes = [("fp32", "fp32", kind)]
    if kind == "half":
        dtypes = [(x, adapter, "ieee") for x in ("bf16", "fp16") for adapter in (x, "fp32")]
    # Wide tiles, which are never split, are used with TMA only, on architectures that have it.
    loads = ((True, False) if split_k else (True,)) if tma else (False,)
    biases = (True, False) if direction == "forward" else (False,)
    for (element, adapter, precision), load, dropout, bias in itertools.product(
        dtypes, loads, (False, True), biases
    ):
        yield Variant(element, adapter, 64, load, precision, dropout, bias, split_k)
    if kind == "half":
        for element, adapter in (("fp16", "bf16"), ("bf16", "fp16")):
            yield Variant(element, adapter, 64, tma, "ieee", True, biases[0], split_k)
    for (element, adapter, precision), r in itertools.product(dtypes[:2], (8, 24)):
        yield Variant(element, adapter, r, tma, precision, bias=biases[0])
    if tma:
        # Rows of x and W may be aligned to 16 bytes while those of y are not, or the reverse.
        for load in loads:
            yield Variant(
                *dtypes[0][:2], 64, load, dtypes[0][2], True, biases[0], split_k, tma_store=not load
            )
