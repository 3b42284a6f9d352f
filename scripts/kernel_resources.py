"""Write docs/kernel-resources.md: what every entry of the tile tables takes, as compiled on this machine.

    PYTHONPATH=kernels python scripts/kernel_resources.py

Needs no GPU and no torch; takes minutes. Unset TRITON_INTERPRET.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

from fastlora_kernels.compile_check.compiler import Resources, compile_kernel
from fastlora_kernels.compile_check.occupancy import resident_programs
from fastlora_kernels.compile_check.variants import TARGETS, Case, Variant
from fastlora_kernels.configs import takes_tma
from fastlora_kernels.tables import ARCHITECTURES, load_table

PAGE = Path(__file__).parent.parent / "docs" / "kernel-resources.md"

HEAD = """# What the kernels take

Written by `scripts/kernel_resources.py` with Triton {version}: adapters in the base's dtype, r = 16, no
dropout, no bias, no split-K; bf16 for "half", and TMA where the architecture has it. `python -m
fastlora_kernels.compile_check --every-variant` holds more variants to the limits of their target. A tile is
rows x columns of the output x step of the main loop. "Resident" is how many programs one multiprocessor can
hold at a time, and what there is not enough of for one more; it is computed from the vendors' limits, not
measured.

| target | kind | class | pass | tile | warps | stages | registers | shared, KiB | resident |
|---|---|---|---|---|---|---|---|---|---|
"""


def cases() -> Iterator[Case]:
    """The plain variant of every entry, for every target."""
    for architecture in ARCHITECTURES:
        for kind, classes in load_table(architecture).entries.items():
            element, precision = ("bf16", "ieee") if kind == "half" else ("fp32", kind)
            variant = Variant(element, element, 16, takes_tma(architecture, kind), precision, bias=False)
            for target in TARGETS[architecture]:
                for shape_class, entry in classes.items():
                    for direction in ("forward", "backward"):
                        tile = getattr(entry, direction)
                        yield Case(architecture, kind, shape_class, direction, tile, variant, target)


def compiled(case: Case) -> Resources:
    """What the compiler made of a case."""
    return compile_kernel(case.direction, case.architecture, case.tile, case.variant, case.target)


def row(case: Case, made: Resources) -> str:
    """The case's line of the table."""
    tile, target = case.tile, str(case.target.arch)
    resident, scarce = resident_programs(target, tile.num_warps, made.registers, made.shared)
    name = target if target.startswith("gfx") else f"sm_{target}"
    shape = f"{tile.block_m} x {tile.columns(case.direction)} x {tile.step(case.direction)}"
    cells = [name, case.kind, case.shape_class, case.direction, shape, tile.num_warps, tile.num_stages]
    cells += [made.registers, f"{made.shared / 1024:.1f}", f"{resident}, {scarce}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Compile all cases and write the page."""
    todo = list(cases())
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = [row(case, made) for case, made in zip(todo, pool.map(compiled, todo), strict=True)]
    PAGE.write_text(HEAD.format(version=triton.__version__) + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
