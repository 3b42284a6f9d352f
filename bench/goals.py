"""What runs are to show, and what they have shown: ratios of times, of bytes, and launches.

On an H200: the layers of Llamas, by CUDA graphs. On a CPU: PEFT beside fastlora over a packed W, what the
packing costs beside the same layer plain, and in a net projections that share x, computed together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch

from bench.cases import Case
from bench.counts import FILL
from bench.groups import OURS, Group, comparable, kinds, subject, title
from bench.layer import UNPACKING, WHOLE_PASS
from bench.methods import GROUPED, METHODS, OWN, UNDROPPED
from bench.results import Results, Row
from bench.schedule import HEADLINE, LLAMA_8B, LLAMA_70B

_HEADLINE: Final = Case(8192, *HEADLINE, 16, torch.bfloat16, torch.bfloat16)
_WIDE: Final = _HEADLINE._replace(adapter_dtype=torch.float32)
_DROPPED: Final = _HEADLINE._replace(dropout=0.1)
_FEWEST_ROWS: Final = 2048  # of x in the cases of the means

# Rows of x whose products hide what unpacking W costs on a CPU.
_MANY_ROWS: Final = 2048

# What the size of a net allows to gain over full fine-tuning.
_LEAST_OF_FULL: Final = {"llama-10M": 1.10, "llama-60M": 1.25}


class Goal(NamedTuple):
    """A ratio of two methods' times in a phase: no more than `most`, no less than `least`.

    Attributes:
        case: The headline's, or the one that stands for it.
        limit: What the ratio cannot pass, in words.
    """

    what: str
    over: str
    under: str
    phase: str = WHOLE_PASS
    case: Case = _HEADLINE
    most: float = math.inf
    least: float = 0.0
    limit: str = ""


class Finding(NamedTuple):
    """A line of the table."""

    what: str
    shapes: str = ""
    measured: str = "-"
    reach: str = ""
    limit: str = ""
    verdict: str = "not measured"


GOALS: Final = (
    Goal("fastlora over frozen, forward", OURS, "frozen", "forward", most=1.04, limit="1.00"),
    Goal("fastlora over frozen, forward+backward", OURS, "frozen", most=1.07, limit="1.01"),
    Goal("full over fastlora, forward+backward", "full", OURS, least=1.40, limit="1.50"),
    Goal("peft over fastlora, fp32 adapters", "peft", OURS, case=_WIDE, least=1.45),
    Goal("peft over fastlora, bf16 adapters", "peft", OURS, least=1.25),
    Goal("dropout 0.1 over none, fastlora", OURS, UNDROPPED.name, case=_DROPPED, most=1.03),
)


def findings(results: Results) -> Iterator[Finding]:
    """The table, from whatever was measured by CUDA graphs; what was not says so."""
    groups = [group for group in comparable(results.rows) if group.any_row.mode == "graph"]
    for goal in GOALS:
        like = goal.case.labels()
        found = _ratios(groups, goal.over, goal.under, goal.phase)
        yield _finding(goal, "headline", [value for group, value in found if group.any_row.labels == like])
        llama = [value for group, value in found if _is_llama(group.any_row.labels, like)]
        yield _finding(goal, f"mean of {len(llama)}", llama)
    yield _fastest_other(groups)
    for phase in ("forward", "backward"):
        yield _launches(results, phase)


def _ratios(groups: Iterable[Group], over: str, under: str, phase: str) -> list[tuple[Group, float]]:
    """The median of the ratios pair by pair, of each case that has both methods."""
    found = ((group, group.median_over(over, under, phase)) for group in groups)
    return [(group, ratio) for group, ratio in found if ratio is not None]


def _finding(goal: Goal, shapes: str, ratios: Sequence[float]) -> Finding:
    if not ratios:
        return Finding(goal.what, shapes, reach=reach(goal.most, goal.least), limit=goal.limit)
    found = judged(goal.what, statistics.geometric_mean(ratios), goal.most, goal.least, digits=3)
    return found._replace(shapes=shapes, limit=goal.limit)


def reach(most: float, least: float) -> str:
    """What a ratio is held to, in words."""
    return f"<= {most:.2f}" if most < math.inf else f">= {least:.2f}"


def judged(what: str, ratio: float, most: float = math.inf, least: float = 0.0, digits: int = 2) -> Finding:
    """A line of a ratio that was measured, judged as printed."""
    measured = f"{ratio:.{digits}f}"
    verdict = "met" if least <= float(measured) <= most else "NOT MET"
    return Finding(what, measured=measured, reach=reach(most, least), verdict=verdict)


def _fastest_other(groups: Sequence[Group]) -> Finding:
    """The least of the other methods' times over ours, over all cases."""
    what, reach = "fastest other LoRA over fastlora, forward+backward", "> 1.00"
    others = [name for name, method in METHODS.items() if method.trains == "AB" and name not in OWN]
    ratios = {name: _ratios(groups, name, OURS, WHOLE_PASS) for name in others}
    found = [(value, name, group) for name, pairs in ratios.items() for group, value in pairs]
    if not found:
        return Finding(what, "least of 0", reach=reach)
    cases = {group.title for *_, group in found}
    lost = {group.title for value, _, group in found if value <= 1}
    least, name, group = min(found, key=lambda one: one[0])
    measured = f"{least:.3f} ({name}, {subject(group.any_row)})"
    verdict = f"NOT MET in {len(lost)} of {len(cases)}" if lost else "met"
    return Finding(what, f"least of {len(cases)}", measured, reach, verdict=verdict)


def _launches(results: Results, phase: str) -> Finding:
    """Kernels of one call of ours in the headline case, fills of the workspace apart."""
    what, reach = f"launches of fastlora, {phase}", "1 and a memset"
    wanted = {"method": OURS, "phase": phase, **_HEADLINE.labels()}
    profile = next((one for one in results.profiles if wanted.items() <= one.items()), None)
    if profile is None:
        return Finding(what, "headline", reach=reach)
    kernels = [name for name in profile["kernels"] if name != FILL and "memset" not in name.lower()]
    fills = len(profile["kernels"]) - len(kernels)
    verdict = "met" if len(kernels) == 1 and fills <= 1 else "NOT MET"
    return Finding(what, "headline", f"{len(kernels)} and {fills} fills", reach, verdict=verdict)


def _is_llama(labels: dict[str, Any], like: dict[str, Any]) -> bool:
    """Whether a case is of the means: a Llama layer with many rows, otherwise as the case given."""
    shape, own = labels["shape"], {**labels, "shape": like["shape"]}
    is_layer = (shape["K"], shape["N"]) in (*LLAMA_8B, *LLAMA_70B)
    return is_layer and shape["M"] >= _FEWEST_ROWS and shape["r"] == _HEADLINE.r and own == like


def cpu_findings(packed: Iterable[Row], nets: Iterable[Row]) -> Iterator[Finding]:
    """The table of runs on a CPU, of rows over a packed W and of nets; nothing where there are none."""
    packed = list(packed)
    plain = {title(row): row for row in packed if (row.phase, row.method, row.base) == (WHOLE_PASS, OURS, "")}
    for kind, same in kinds(group for group in comparable(packed) if group.any_row.base).items():
        if ratios := [ratio for group in same if (ratio := group.median_over("peft"))]:
            what = f"peft over fastlora, {WHOLE_PASS}, {kind}, mean of {len(ratios)} shapes"
            yield judged(what, statistics.geometric_mean(ratios), least=1.2)
        is_wider = same[0].any_row.dtype != same[0].any_row.adapter_dtype
        if is_wider and (saved := [ratio for group in same if (ratio := group.saved_over("peft"))]):
            what = f"bytes saved for backward, peft over fastlora, {kind}"
            yield judged(what, min(saved), least=1.5)
        for group in same:
            yield from _cost_of_packing(group, plain)
    for group in comparable(nets):
        yield from _grouped(group)


def _cost_of_packing(group: Group, plain: dict[str, Row]) -> Iterator[Finding]:
    """Ours over the packed W, over ours plain and the time that unpacking takes alone."""
    row, unpacking, base = group.row(OURS), group.row(UNPACKING), group.any_row.base
    same = plain.get(group.title.replace(f", base {base}", ""))
    if row and unpacking and same and row.shape["M"] == _MANY_ROWS:
        what = f"fastlora over {base}, over fastlora plain and the unpacking alone, {group.title}"
        yield judged(what, row.median_us / (same.median_us + unpacking.median_us), most=1.03)


def _grouped(group: Group) -> Iterator[Finding]:
    row = group.any_row
    if row.model is None or GROUPED.name not in group.rows or row.mode != "eager":
        return
    if ratio := group.median_over(GROUPED.name):
        yield judged(f"grouped over fastlora, {group.title}", ratio, most=0.97)
    for name, least in (("peft", 1.10), ("full", _LEAST_OF_FULL.get(row.model))):
        ratio = group.median_over(name, GROUPED.name)
        if ratio and least:
            yield judged(f"{name} over grouped, {group.title}", ratio, least=least)
