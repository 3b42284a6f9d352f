"""What a run on an H200 is to show, and what it has shown: ratios of times, and launches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from bench.cases import Case
from bench.counts import FILL
from bench.methods import FASTLORA, METHODS, UNDROPPED
from bench.results import Results, Row
from bench.schedule import HEADLINE, LLAMA_8B, LLAMA_70B
from fastlora.measuring.timing import ratio

_MODE: Final = "graph"
_HEADLINE: Final = Case(8192, *HEADLINE, 16, torch.bfloat16, torch.bfloat16)
_FP32: Final = {"adapter_dtype": "float32"}
_DROPPED: Final = {"dropout": 0.1}
_FEWEST_ROWS: Final = 2048  # of x in the cases of the means
_OURS: Final = FASTLORA.name
_STEP: Final = "forward+backward"
_OTHERS: Final = tuple(
    name for name, one in METHODS.items() if one.trains == "AB" and name not in (_OURS, UNDROPPED.name)
)


class Goal(NamedTuple):
    """A ratio of two methods' times in a phase.

    Attributes:
        labels: What distinguishes the cases from the headline's.
        most: The ratio is to be no more than this, where given.
        least: And no less than this.
        limit: What it cannot pass, in words.
    """

    what: str
    over: str
    under: str
    phase: str
    labels: Mapping[str, object]
    most: float = math.inf
    least: float = 0.0
    limit: str = ""

    @property
    def reach(self) -> str:
        """The bound in words."""
        return f"<= {self.most:.2f}" if self.most < math.inf else f">= {self.least:.2f}"


class Finding(NamedTuple):
    """A line of the table."""

    what: str
    shapes: str
    measured: str
    reach: str
    limit: str
    verdict: str


GOALS: Final = (
    Goal("fastlora over frozen, forward", _OURS, "frozen", "forward", {}, most=1.04, limit="1.00"),
    Goal("fastlora over frozen, forward+backward", _OURS, "frozen", _STEP, {}, most=1.07, limit="1.01"),
    Goal("full over fastlora, forward+backward", "full", _OURS, _STEP, {}, least=1.40, limit="1.50"),
    Goal("peft over fastlora, fp32 adapters", "peft", _OURS, _STEP, _FP32, least=1.45),
    Goal("peft over fastlora, bf16 adapters", "peft", _OURS, _STEP, {}, least=1.25),
    Goal("dropout 0.1 over none, fastlora", _OURS, UNDROPPED.name, _STEP, _DROPPED, most=1.03),
)


def findings(results: Results) -> Iterator[Finding]:
    """The table, from whatever was measured; what was not says so."""
    rows = [row for row in results.rows if row.mode == _MODE]
    for goal in GOALS:
        like = {**_HEADLINE.labels(), **goal.labels}
        ratios = _ratios(rows, goal)
        yield _finding(goal, "headline", [ratios[key] for key in (_key(like),) if key in ratios])
        llama = [value for key, value in ratios.items() if _is_llama(json.loads(key), like)]
        yield _finding(goal, f"mean of {len(llama)}", llama)
    yield _fastest_other(rows)
    for phase in ("forward", "backward"):
        yield _launches(results, phase)


def _ratios(rows: Iterable[Row], goal: Goal) -> dict[str, float]:
    """By case, the median of the ratios pair by pair."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.phase == goal.phase:
            cases.setdefault(_key(row.labels), {})[row.method] = row
    return {
        key: ratio(methods[goal.over].samples_us, methods[goal.under].samples_us).median
        for key, methods in cases.items()
        if goal.over in methods and goal.under in methods
    }


def _finding(goal: Goal, shapes: str, ratios: Sequence[float]) -> Finding:
    if not ratios:
        return Finding(goal.what, shapes, "-", goal.reach, goal.limit, "not measured")
    # Judged as printed.
    mean = round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3)
    verdict = "met" if goal.least <= mean <= goal.most else "NOT MET"
    return Finding(goal.what, shapes, f"{mean:.3f}", goal.reach, goal.limit, verdict)


def _fastest_other(rows: Sequence[Row]) -> Finding:
    """The least of the other methods' times over ours, over all cases."""
    what, reach = "fastest other LoRA over fastlora, forward+backward", "> 1.00"
    ratios = {
        (name, key): value
        for name in _OTHERS
        for key, value in _ratios(rows, Goal("", name, _OURS, _STEP, {})).items()
    }
    cases = {key for _, key in ratios}
    if not ratios:
        return Finding(what, "least of 0", "-", reach, "", "not measured")
    (name, key), least = min(ratios.items(), key=lambda item: item[1])
    M, K, N, r = (json.loads(key)["shape"][letter] for letter in "MKNr")
    lost = len({key for (_, key), value in ratios.items() if value <= 1})
    verdict = "met" if least > 1 else f"NOT MET in {lost} of {len(cases)}"
    shapes = f"least of {len(cases)}"
    return Finding(what, shapes, f"{least:.3f} ({name}, {M}x{K}->{N} r{r})", reach, "", verdict)


def _launches(results: Results, phase: str) -> Finding:
    """Kernels of one call of ours in the headline case, fills of the workspace apart."""
    what, reach = f"launches of fastlora, {phase}", "1 and a memset"
    wanted = {"method": _OURS, "phase": phase, **_HEADLINE.labels()}
    profile = next((one for one in results.profiles if wanted.items() <= one.items()), None)
    if profile is None:
        return Finding(what, "headline", "-", reach, "", "not measured")
    kernels = [name for name in profile["kernels"] if name != FILL and "memset" not in name.lower()]
    fills = len(profile["kernels"]) - len(kernels)
    verdict = "met" if len(kernels) == 1 and fills <= 1 else "NOT MET"
    return Finding(what, "headline", f"{len(kernels)} and {fills} fills", reach, "", verdict)


def _is_llama(labels: dict[str, Any], like: dict[str, Any]) -> bool:
    """Whether a case is of the means: a Llama layer with many rows, otherwise as the case given."""
    shape = labels["shape"]
    others = {name: value for name, value in like.items() if name != "shape"}
    return (
        (shape["K"], shape["N"]) in (*LLAMA_8B, *LLAMA_70B)
        and shape["M"] >= _FEWEST_ROWS
        and shape["r"] == _HEADLINE.r
        and others.items() <= labels.items()
    )


def _key(labels: dict[str, object]) -> str:
    return json.dumps(labels, sort_keys=True)
