"""LoRA on the Conv1D of Transformers' GPT-2, whose weight is [K, N]: natively, in files and under PEFT."""

import copy
import json
import pickle

import peft
import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    explain,
    initialize,
    load_pretrained,
    merge_lora,
    remove_lora,
    save_pretrained,
    unmerge_lora,
)
from fastlora.integrations.peft import accelerate_peft, forward_counts
from fastlora.layer.fused_lora_conv1d import FusedLoRAConv1D
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import random_inputs
from tests.integrations.peft_models import run
from tests.models import moved

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
X = torch.randn(4, 6)


def net():
    return nn.Sequential(Conv1D(5, 6), nn.ReLU(), nn.Linear(5, 3)).requires_grad_(False)


def ours(base, **options):
    return moved(apply_lora(copy.deepcopy(base), LoRAConfig(**{"r": 2, "alpha": 3.0, **options})))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_are_right(dtype):
    inputs = random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=torch.float32)
    conv = Conv1D(43, 29).to(dtype)
    with torch.no_grad():
        conv.weight.copy_(inputs.W.t())
        conv.bias.copy_(inputs.b)
    layer = FusedLoRAConv1D.from_linear(conv, r=5, alpha=inputs.s * 5)
    with torch.no_grad():
        layer.lora_A.copy_(inputs.A)
        layer.lora_B.copy_(inputs.B)
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    found = dict(
        zip(("dx", "dA", "dB"), torch.autograd.grad(y, (x, *layer.active()), inputs.dy), strict=True)
    )
    torchs, truth = gradients(inputs), oracle(inputs)
    for name, value in {"y": y.detach(), **found}.items():
        assert_within_budget(name, value, torchs[name], truth[name])
    assert "in_features=29, out_features=43" in repr(layer)
    assert "path: torch" in str(explain((4, 29), layer))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_removing_states_and_copies_keep_the_layout(dora):
    base = net()
    model = ours(base, dora=dora)
    y, W = model(X), model[0].weight.clone()
    assert type(model[0]) is FusedLoRAConv1D
    assert torch.equal(W, base[0].weight)
    merge_lora(model)
    torch.testing.assert_close(model(X), y)
    assert torch.equal(model[0].effective_weight(), model[0].weight)
    unmerge_lora(model)
    assert torch.equal(model[0].weight, W)
    model[0].enabled = model[2].enabled = False
    assert torch.equal(model[0].effective_weight(), W)
    torch.testing.assert_close(model(X), base(X))
    model[0].enabled = model[2].enabled = True
    twin = ours(base, dora=dora)
    twin.load_state_dict(model.state_dict())
    for each in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(each(X), y)
    plain = remove_lora(model, merge=True)
    assert type(plain[0]) is Conv1D
    assert vars(plain[0]).keys() == vars(base[0]).keys()
    torch.testing.assert_close(plain(X), y)
    twin[0].reset_parameters()
    torch.testing.assert_close(twin[0](X), X @ twin[0].weight)


@pytest.mark.parametrize("dora", [False, True])
def test_files_go_both_ways(tmp_path, dora):
    base = net()
    model = ours(base, dora=dora)
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # for the nn.Linear beside it
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    torch.testing.assert_close(theirs(X), model(X))
    theirs.save_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(load_pretrained(copy.deepcopy(base), tmp_path / "again")(X), model(X))


@pytest.mark.parametrize("dora", [False, True])
def test_under_peft_it_is_fused(dora):
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], use_dora=dora, init_lora_weights=False)
    stock = moved(peft.get_peft_model(net().double(), config))
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    x = X.double()
    ours, theirs = run(fused, x), run(stock, x)
    assert forward_counts(fused) == {"fused": 2}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)
    fused.merge_adapter()
    torch.testing.assert_close(fused(x), theirs["y"])


def test_what_is_not_exactly_one_is_refused():
    class Own(Conv1D):
        pass

    with pytest.raises(TypeError, match="Own, a subclass of Conv1D"):
        apply_lora(nn.Sequential(Own(3, 3)), LoRAConfig())
    with pytest.raises(TypeError, match=r"must be exactly an nn\.Linear; got Conv1D"):
        FusedLoRALinear.from_linear(Conv1D(3, 3))
    with pytest.raises(ValueError, match=r"to be started from W; '0' holds a Conv1D's"):
        initialize(apply_lora(net(), LoRAConfig(r=2)), "pissa")
