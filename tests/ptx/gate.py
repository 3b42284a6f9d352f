"""Plant the faults of the hand-over in the kernels, compile them, and see what the check of their PTX says.

    python -m tests.ptx.gate              all
    python -m tests.ptx.gate --only wait  those whose name holds this

It prints a line for each fault and target. Needs no GPU; unset TRITON_INTERPRET.
"""

import argparse

from fastlora_kernels.compile_check.compiler import compile_kernel
from fastlora_kernels.compile_check.rules import faults
from fastlora_kernels.compile_check.variants import TARGETS, Case, Variant
from tests.ptx.driver.cases import small_tiles
from tests.ptx.driver.mutants import MUTANTS, Mutant
from tests.ptx.driver.plant import changed_ptx, planted

# The gate cannot see a fault in numbers, nor one within a copy or a matrix instruction.
_WORDS = ("publish", "the wait", "arriv", "does not wait", "one tile less")
HAND_OVER = [mutant for mutant in MUTANTS if any(word in mutant.name for word in _WORDS)]
UNCHANGED = Mutant("the kernels as they are", "sm_80")


def found_by_the_gate(mutant: Mutant, architecture: str) -> list[str]:
    """The faults that the check finds in either kernel with the fault planted."""
    forward, backward = small_tiles(architecture, "half")
    variant = Variant(tma=architecture == "sm_90", bias=False, split_k=True, r=100)
    found = []
    with planted(mutant):
        for direction, tile in (("forward", forward), ("backward", backward)):
            target = TARGETS[architecture][0]
            made = compile_kernel(direction, architecture, tile, variant, target)
            made = made._replace(assembly=changed_ptx(mutant, made.assembly))
            case = Case(architecture, "half", "square", direction, tile, variant, target)
            found += [f"{direction}: {fault}" for fault in faults(case, made)]
    return found


def main() -> None:
    """Print what the check finds."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="faults whose name holds one of these")
    parser.add_argument("--architectures", nargs="*", default=["sm_80", "sm_90"])
    options = parser.parse_args()
    chosen = [mutant for mutant in HAND_OVER if any(one in mutant.name for one in options.only)]
    for architecture in options.architectures:
        for mutant in (UNCHANGED, *chosen):
            found = found_by_the_gate(mutant, architecture)
            print(f"{architecture} {mutant.name:55} {'; '.join(found) or 'nothing found'}", flush=True)


if __name__ == "__main__":
    main()
