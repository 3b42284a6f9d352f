"""A layer whose batch mixes adapters: `python -m bench.mixed`. Forward, and forward with backward.

A batch of 16 sequences, whose adapters are dealt in turn: frozen (no adapter), one (fastlora, one adapter for
all rows), peft (its `adapter_names=`, which it has for inference only) and fastlora (`adapter_batch`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import click
import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.level import Level, level
from bench.measure import on_record
from bench.methods import PEFT
from bench.results import WHOLE_PASS, Row
from fastlora import LoRAConfig, adapter_batch, add_adapter, apply_lora, train_adapters
from fastlora.measuring.errors import relative_error
from fastlora.measuring.timing import WHOLE, Work, interleaved, rounds_within, timer_for, warm_up

LEVEL: Final = "mixed"
METHODS: Final = ("frozen", "one", "peft", "fastlora")
ITEMS: Final = 16
MIXES: Final = (1, 4, 8, 16)

CASES: Final = {
    "cpu": tuple(Case(M, 1024, 1024, 16, torch.float32, torch.float32) for M in (16, 256, 2048)),
    "cuda": tuple(Case(M, 4096, 4096, 16, torch.bfloat16, torch.float32) for M in (16, 2048, 8192)),
}


@level(LEVEL, 60, METHODS)
@click.option("--seconds", default=2.0, show_default=True, help="Of timing for each case and phase.")
def main(level: Level, seconds: float) -> None:
    """Measure every case with every number of adapters."""
    absent = {"peft": PEFT.why_absent(level.device, torch.float32)} if "peft" in level.methods else {}
    level.results.absent |= {name: why for name, why in absent.items() if why}
    methods = [name for name in level.methods if name not in level.results.absent]
    for case in CASES[level.device.type]:
        for adapters in MIXES:
            with on_record(level.results.problems, f"{case}, {adapters} adapters"):
                _measure(level, case, adapters, methods, seconds)


def _measure(level: Level, case: Case, adapters: int, methods: list[str], seconds: float) -> None:
    nets = _nets(case, adapters, methods, level.device)
    names = [_name(item % adapters) for item in range(ITEMS)]
    x = torch.randn(ITEMS, case.M // ITEMS, case.K, dtype=case.dtype, device=level.device)
    dy = torch.randn(ITEMS, case.M // ITEMS, case.N, dtype=case.dtype, device=level.device)

    def forward(method: str, x: Tensor) -> Tensor:
        net = nets[method]
        options = {"adapter_names": names} if method == "peft" else {}
        with adapter_batch(net, names) if method == "fastlora" else contextlib.nullcontext():
            y: Tensor = net(x, **options)
            return y

    def infer(method: str) -> None:
        with torch.no_grad():
            forward(method, x)

    def train(method: str) -> None:
        own = [x, *(p for p in nets[method].parameters() if p.requires_grad)]
        torch.autograd.grad(forward(method, x), own, dy, allow_unused=True)

    if {"peft", "fastlora"} <= nets.keys():
        with torch.no_grad():
            error = relative_error(forward("fastlora", x), forward("peft", x).double())
        if error > 8 * torch.finfo(case.dtype).eps:
            raise ValueError(f"fastlora and peft differ by {error:.1e}")
    phases: dict[str, dict[str, Work]] = {
        "forward": {name: Work.of(lambda name=name: infer(name)) for name in nets},
        WHOLE_PASS: {name: Work.of(lambda name=name: train(name)) for name in nets if name != "peft"},
    }
    for phase, works in phases.items():
        x.requires_grad_(phase == WHOLE_PASS)
        for method, samples in _times(level, works, seconds).items():
            fields = {"method": method, "phase": phase, "mode": f"{adapters} adapters mixed"}
            level.results.rows.append(Row.of_samples(samples, level=LEVEL, **fields, **case.labels()))


def _times(level: Level, works: Mapping[str, Work], seconds: float) -> dict[str, list[float]]:
    timer, how = timer_for(level.device), level.effort
    warm_up(works, how.warm_up_rounds, timer)
    rounds = rounds_within(seconds, works, timer, fewest=how.fewest_rounds, most=how.rounds)
    return {name: times[WHOLE] for name, times in interleaved(works, rounds, timer).items()}


def _nets(case: Case, adapters: int, methods: list[str], device: torch.device) -> dict[str, nn.Module]:
    """A net of one layer for each method, with the same W and adapters; A and B are not zero."""
    torch.manual_seed(0)
    W = torch.randn(case.N, case.K) / case.K**0.5
    pairs = [(torch.randn(case.r, case.K), torch.randn(case.N, case.r)) for _ in range(adapters)]
    made = {}
    for method in methods:
        net = nn.Sequential(nn.Linear(case.K, case.N, bias=False, dtype=case.dtype))
        with torch.no_grad():
            net[0].weight.copy_(W)
        made[method] = _adapted(method, net, case, pairs[:1] if method == "one" else pairs).to(device)
    return made


def _adapted(method: str, net: nn.Sequential, case: Case, pairs: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """The net with an adapter of each pair."""
    names = [_name(number) for number in range(len(pairs))]
    if method == "frozen":
        return net.requires_grad_(False)
    if method == "peft":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=case.r, lora_alpha=case.r, target_modules=["0"])
        model = get_peft_model(net, config)
        for name in names[1:]:
            model.add_adapter(name, config)
        layer = model.base_model.model[0]
        factors = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in names]
        model.eval()
    else:
        ours = LoRAConfig(r=case.r, alpha=case.r)
        model = apply_lora(net, ours)
        for name in names[1:]:
            add_adapter(model, name, ours)
        factors = [tuple(net[0].adapters[name].parameters()) for name in names]
        train_adapters(model, names)
    with torch.no_grad():
        for pair, values in zip(factors, pairs, strict=True):
            for factor, value in zip(pair, values, strict=True):
                factor.copy_(value)
    return model


def _name(number: int) -> str:
    return f"a{number}" if number else "default"


if __name__ == "__main__":
    main()
