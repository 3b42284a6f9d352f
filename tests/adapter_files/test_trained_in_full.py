"""Parameters that take gradients beside the updates: all in the file, or refused by name."""

import copy

import pytest
import torch
from torch import nn

from fastlora import load_pretrained, lora_layers, save_pretrained, unfreeze
from tests.models import TiedLM, adapted


def with_norms():
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def steps(model, x):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("how", ["unfreeze", "requires_grad_"])
def test_what_was_unfrozen_and_trained_reads_back_in_peft_and_here(tmp_path, how):
    peft = pytest.importorskip("peft")
    base = with_norms().eval()
    model, x = adapted(copy.deepcopy(base)).train(), torch.randn(8, 6)
    unfreeze(model) if how == "unfreeze" else model[1:3].requires_grad_()
    expected = steps(model, x)(x)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained(copy.deepcopy(base), tmp_path)(x), expected)
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(read(x), expected)


def refused():
    weight = adapted(with_norms())
    weight[0].weight.requires_grad_()
    bias = adapted(with_norms())
    bias[0].bias.requires_grad_()
    tied = adapted(TiedLM(), target_modules=["q_proj"])
    unfreeze(tied)
    around = nn.Module()
    around.inner, around.gate = nn.Linear(3, 3), nn.Parameter(torch.zeros(3))
    adapted(around)
    around.gate.requires_grad_()
    return {"0.weight": weight, "0.bias": bias, "embed.weight": tied, "gate": around}


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "embed.weight", "gate"])
def test_what_the_format_cannot_hold_is_refused_by_name_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}.*state_dict"):
        save_pretrained(refused()[name], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_adapters_that_wait_are_not_taken_for_modules_to_save(tmp_path):
    from fastlora import LoRAConfig, add_adapter

    model = adapted(with_norms())
    add_adapter(model, "other", LoRAConfig(r=3))
    for parameter in model.parameters():
        parameter.requires_grad_("lora" in str([n for n, p in model.named_parameters() if p is parameter]))
    save_pretrained(model, tmp_path)
    assert '"modules_to_save": null' in (tmp_path / "adapter_config.json").read_text()


def test_an_a_that_a_wrapper_took_away_is_refused(tmp_path):
    model = adapted(with_norms())
    layer = next(layer for _, layer in lora_layers(model))
    layer.lora_A.data = torch.empty(0)
    with pytest.raises(ValueError, match="summon_full_params"):
        save_pretrained(model, tmp_path)
