"""torch.export of a model with unmerged adapters; torch.jit traces it and cannot script it."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim

from fastlora import remove_lora, set_lora_enabled
from fastlora.measuring.errors import assert_within_budget
from tests.training.nets import DEVICE, batch, net

# torch.jit as a whole is deprecated; these tests say what happens to who still uses it.
deprecated = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def through_a_file(save, load, program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_computes_the_same_for_any_number_of_rows(strict):
    model = net(dropout=0.3).eval()
    program = torch.export.export(model, (batch(),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=strict)
    loaded = through_a_file(torch.export.save, torch.export.load, program)
    for rows in (2, 9, 33):
        x = batch(rows)
        assert torch.equal(program.module()(x), model(x))
        assert torch.equal(loaded.module()(x), model(x))


def test_an_export_holds_one_operator_for_each_layer_and_the_adapters_apart():
    model = net().eval()
    program = torch.export.export(model, (batch(),))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.fastlora.lora_forward.default) == 2
    assert program.state_dict.keys() == model.state_dict().keys()
    with torch.no_grad():
        x = batch()
        before = program.module()(x)
        program.state_dict["0.adapters.default.lora_B"].mul_(2)
        assert not torch.equal(program.module()(x), before)


def test_an_export_of_disabled_adapters_is_that_of_the_base_model():
    model = net().eval()
    set_lora_enabled(model, False)
    program = torch.export.export(model, (batch(),))
    assert "fastlora" not in str(program.graph)
    x = batch()
    assert torch.equal(program.module()(x), model(x))


def test_an_exported_program_runs_under_autocast_as_the_model_does():
    model, x = net().eval(), batch()
    program = torch.export.export(model, (x,))
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        ours, theirs = program.module()(x), model(x)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)


@deprecated
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_trace_is_saved_loaded_and_serves_other_numbers_of_rows():
    model = net(dropout=0.3).eval()
    traced = torch.jit.trace(model, (batch(),))
    loaded = through_a_file(torch.jit.save, torch.jit.load, traced)
    x = batch(9).detach()
    with torch.no_grad():
        ours, theirs, truth = loaded(x), model(x), model.double()(x.double())
    assert_within_budget("y", ours, theirs, truth)


@deprecated
def test_scripting_is_refused_by_name_and_works_once_lora_is_merged():
    model = net().eval()
    for module in (model, model[0], nn.ModuleDict({"inner": model})):
        with pytest.raises(TypeError, match=r"script cannot compile FusedLoRALinear.*torch\.export"):
            torch.jit.script(module)
    x = batch()
    merged = remove_lora(model)
    assert torch.equal(torch.jit.script(merged)(x), merged(x))
