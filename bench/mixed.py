"""A layer whose batch mixes adapters: `python -m bench.mixed`. Forward, and forward with backward.

A batch of 16 sequences, whose adapters are dealt in turn: frozen (no adapter), one (fastlora, one adapter for
all rows), peft (its `adapter_names=`, which it has for inference only) and fastlora (`adapter_batch`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Mapping
from typing import Any, Final

import click
import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.layer import WHOLE_PASS
from bench.level import Level, level
from bench.measure import on_record
from bench.methods import PEFT
from bench.results import Row
from fastlora import LoRAConfig, adapter_batch, add_adapter, apply_lora, train_adapters
from fastlora.measuring.errors import relative_error
from fastlora.measuring.timing import WHOLE, Work

METHODS: Final = ("frozen", "one", "peft", "fastlora")
ITEMS: Final = 16
MIXES: Final = (1, 4, 8, 16)

CASES: Final = {
    "cpu": tuple(Case(M, 1024, 1024, 16, torch.float32, torch.float32) for M in (16, 256, 2048)),
    "cuda": tuple(Case(M, 4096, 4096, 16, torch.bfloat16, torch.float32) for M in (16, 2048, 8192)),
}


@level("mixed", __doc__, 60, METHODS)
@click.option("--seconds", default=2.0, show_default=True, help="Of timing for each case and phase.")
def main(level: Level, seconds: float) -> None:
    """Measure every case with every number of adapters."""
    methods, device = list(level.methods), level.effort.device
    if "peft" in methods and (why := PEFT.why_absent(device, torch.float32)):
        level.results.absent["peft"] = why
        methods.remove("peft")
    for case, adapters in itertools.product(CASES[device.type], MIXES):
        with on_record(level.results.problems, f"{case}, {adapters} adapters"):
            nets = {method: _net(method, case, adapters).to(device) for method in methods}
            _measure(level, case, nets, adapters, seconds)


def _net(method: str, case: Case, adapters: int) -> Any:
    """A net of one layer; for each method with the same W and adapters, and neither A nor B is zero."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(case.K, case.N, bias=False, dtype=case.dtype))
    names = [_name(number) for number in range(1 if method == "one" else adapters)]
    if method == "frozen":
        return net.requires_grad_(False)
    if method == "peft":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=case.r, lora_alpha=case.r, target_modules=["0"])
        model: Any = get_peft_model(net, config)
        for name in names[1:]:
            model.add_adapter(name, config)
        layer = model.eval().base_model.model[0]
        factors = [pair[name].weight for name in names for pair in (layer.lora_A, layer.lora_B)]
    else:
        ours = LoRAConfig(r=case.r, alpha=case.r)
        model = apply_lora(net, ours)
        for name in names[1:]:
            add_adapter(model, name, ours)
        factors = [factor for name in names for factor in net[0].adapters[name].parameters()]
        train_adapters(model, names)
    torch.manual_seed(1)
    with torch.no_grad():
        for factor in factors:
            factor.copy_(torch.randn(factor.shape))
    return model


def _name(number: int) -> str:
    return f"a{number}" if number else "default"


def _measure(level: Level, case: Case, nets: Mapping[str, Any], adapters: int, seconds: float) -> None:
    names = [_name(item % adapters) for item in range(ITEMS)]
    like: dict[str, Any] = {"dtype": case.dtype, "device": level.effort.device}
    x = torch.randn(ITEMS, case.M // ITEMS, case.K, **like)
    dy = torch.randn(ITEMS, case.M // ITEMS, case.N, **like)

    def forward(method: str) -> Tensor:
        options = {"adapter_names": names} if method == "peft" else {}
        with adapter_batch(nets[method], names) if method == "fastlora" else contextlib.nullcontext():
            y: Tensor = nets[method](x, **options)
            return y

    infer = torch.no_grad()(forward)

    def train(method: str) -> None:
        own = [x, *(p for p in nets[method].parameters() if p.requires_grad)]
        torch.autograd.grad(forward(method), own, dy, allow_unused=True)

    if {"peft", "fastlora"} <= nets.keys():
        error = relative_error(infer("fastlora"), infer("peft").double())
        if error > 8 * torch.finfo(case.dtype).eps:
            raise ValueError(f"fastlora and peft differ by {error:.1e}")
    for phase, run in (("forward", infer), (WHOLE_PASS, train)):
        x.requires_grad_(phase == WHOLE_PASS)
        able = [name for name in nets if phase == "forward" or name != "peft"]
        works = {name: Work.of(functools.partial(run, name)) for name in able}
        for method, times in level.effort.times(works, seconds).items():
            fields = {"level": level.name, "method": method, "phase": phase, **case.labels()}
            mode = f"{adapters} adapters mixed"
            level.results.rows.append(Row.of_samples(times[WHOLE], mode=mode, **fields))


if __name__ == "__main__":
    main()
