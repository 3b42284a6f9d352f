"""Layers whose W is packed, as `bench.linear --base` measures them: right, and counted."""

import pytest
import torch

from bench.cases import Case
from bench.check import check
from bench.layer import layer_saved_bytes
from bench.methods import FASTLORA, FROZEN, PEFT
from bench.schedule import packed_measurements
from bench.task import layer_task
from fastlora.formats.registry import format_of

pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")
M, K, N, R = 16, 64, 32, 4


@pytest.mark.parametrize("base", ["nf4", pytest.param("int8", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("method", [FROZEN, PEFT, FASTLORA], ids=lambda method: method.name)
def test_each_method_is_held_to_the_unpacked_weight(method, base):
    case = Case(M, K, N, R, torch.float32, torch.float32, base=base)
    inputs = case.inputs(CPU)
    task = layer_task(case, inputs)
    assert format_of(task.build().linear) is not None
    assert format_of(task.plain().linear) is None
    assert check(method, task).failure is None


def test_peft_saves_half_as_much_again_for_wider_adapters():
    case = Case(M, K, N, R, torch.bfloat16, torch.float32, base="nf4")
    ours = layer_saved_bytes(FASTLORA, case, CPU)
    assert ours == 2 * M * K + 4 * M * R
    assert layer_saved_bytes(PEFT, case, CPU) >= 1.5 * ours


def test_packed_layers_are_measured_beside_the_same_ones_plain():
    planned = packed_measurements("nf4", CPU)
    bases = [one.case.base for one in planned]
    assert bases == ["nf4", ""] * (len(planned) // 2)
    assert len({str(one.case) for one in planned}) == len(planned)
