import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from fastlora import LoRAConfig, apply_lora, lora_layers, parameter_report
from fastlora.model.wrappers import unwrapped


def net():
    """Two linear layers; one of them below a child that is called "module" and wraps nothing."""
    return nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"module": nn.Linear(4, 4)}))


NAMES = ["0", "1.module"]


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, AveragedModel, checkpoint_wrapper, lambda model: torch.compile(model, backend="eager")],
    ids=["data parallel", "averaged", "checkpointed", "compiled"],
)
def test_wrappers_leave_no_trace_in_names(wrap):
    model = apply_lora(net(), LoRAConfig(r=1))
    wrapped = nn.DataParallel(wrap(model))
    assert [name for name, _ in lora_layers(wrapped)] == NAMES
    assert [layer.name for layer in parameter_report(wrapped).layers] == NAMES
    assert unwrapped(wrapped) is (wrapped.module.module if wrap is AveragedModel else model)


def test_patterns_are_matched_against_names_without_wrappers():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(4, 4)})])})
    compiled = torch.compile(model, backend="eager")
    apply_lora(compiled, LoRAConfig(r=1, target_modules=r"blocks\.\d\.to_q"))
    assert [name for name, _ in lora_layers(compiled)] == ["blocks.0.to_q"]
