"""Averages of weights by torch's AveragedModel: each of its own, or refused."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastlora import LoRAConfig, add_adapter, apply_lora, merge_lora, set_adapter, unmerge_lora
from fastlora.model.versions import state_of
from tests.models import NetWithHead, adapted, mlp
from tests.several_adapters import two as without_heads


def two():
    """A net whose adapters "default", in use, and "fr" have a norm and a head each."""
    options = {"r": 2, "target_modules": ["body"]}
    model = apply_lora(NetWithHead(), LoRAConfig(modules_to_save=["norm", "score"], **options))
    return add_adapter(model, "fr", LoRAConfig(**options))


def step(model):
    """Change what is trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()


def same_values(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


def test_an_average_that_is_switched_with_the_model_has_each_adapters_own_means():
    model = two()
    averaged = AveragedModel(model)
    seen = {name: [] for name in ("default", "fr")}
    for name in ("default", "fr", "default", "fr"):
        for each in (model, averaged):
            set_adapter(each, name)
        step(model)
        averaged.update_parameters(model)
        for own, states in seen.items():
            states.append({key: value.clone() for key, value in state_of(model.score, own).items()})
    for name, states in seen.items():
        assert not same_values(states[0], states[-1])
        for key, value in state_of(averaged.module.score, name).items():
            torch.testing.assert_close(value, torch.stack([each[key] for each in states]).mean(0))


@pytest.mark.parametrize(
    "made", [lambda averaged: averaged, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]
)
def test_heads_of_different_adapters_are_not_mixed(made):
    model = two()
    averaged = made(AveragedModel(model))
    averaged.update_parameters(model)
    set_adapter(model, "fr")
    before = copy.deepcopy(averaged.state_dict())
    with pytest.raises(ValueError, match=r"has 'default' and the model 'fr' .set_adapter for both"):
        averaged.update_parameters(model)
    assert same_values(averaged.state_dict(), before)
    set_adapter(averaged, "fr")
    averaged.update_parameters(model)
    assert averaged.n_averaged == 2


@pytest.mark.parametrize("which", ["model", "average"])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_merged_weight_is_not_averaged(which, use_buffers):
    model = adapted(mlp())
    averaged = AveragedModel(model, use_buffers=use_buffers)
    averaged.update_parameters(model)
    before = copy.deepcopy(averaged.state_dict())
    merge_lora(one := model if which == "model" else averaged)
    with pytest.raises(ValueError, match=r"must be unmerged to be averaged; merged: '0', '2' .unmerge_lora"):
        averaged.update_parameters(model)
    unmerge_lora(one)
    assert same_values(averaged.state_dict(), before)
    averaged.update_parameters(model)


def test_adapters_without_heads_and_models_without_lora_are_averaged_whichever_is_in_use():
    model, plain = without_heads(), nn.Linear(2, 2)
    averaged, other = AveragedModel(model), AveragedModel(plain)
    set_adapter(model, "fr")
    averaged.update_parameters(model)
    other.update_parameters(plain)
    assert "update_parameters" not in vars(other)


def test_an_average_in_a_process_that_got_its_model_by_a_pickle_is_looked_at_too():
    code = "import pickle, sys; from torch.optim.swa_utils import AveragedModel; "
    code += "model = pickle.load(sys.stdin.buffer); print(*vars(AveragedModel(model)))"
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(adapted(mlp())), capture_output=True
    )
    assert b"update_parameters" in run.stdout, run.stderr.decode()
