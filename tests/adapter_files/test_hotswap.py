"""Other values in the same parameters: what compiled code was made for stays."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    add_adapter,
    apply_lora,
    hot_swap,
    load_pretrained,
    lora_layers,
    merge_lora,
    save_pretrained,
    set_adapter,
)
from fastlora.measuring.errors import assert_within_budget
from tests.models import adapted, mlp


@pytest.fixture
def base():
    return mlp()


def saved(base, directory, **options):
    """A directory with another adapter, and a model that computes with it."""
    model = adapted(copy.deepcopy(base), **options).eval()
    save_pretrained(model, directory)
    return model


def assert_computes(model, other, base, x):
    truth = copy.deepcopy(other).double()(x.double())
    with torch.no_grad():
        assert_within_budget("y", model(x), other(x), truth)
        assert not torch.equal(model(x), base(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [{}, {"r": 1}, {"alpha": 3}, {"r": 3, "alpha": 7, "rslora": True}, {"target_modules": ["2"], "r": 2}],
    ids=["same", "smaller rank", "other scaling", "all", "fewer layers"],
)
def test_the_model_computes_the_other_adapter_without_compiling_again(base, options, tmp_path):
    other = saved(base, tmp_path, **options)
    model = adapted(copy.deepcopy(base), r=4).eval()
    x = torch.randn(5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    parameters = [(id(p), p.data_ptr()) for p in model.parameters()]
    with torch.compiler.set_stance("fail_on_recompile"):
        hot_swap(model, tmp_path)
        assert torch.equal(compiled(x), model(x))
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == parameters
    assert [layer.scaling for _, layer in lora_layers(model)] == [1, 1]
    assert_computes(model, other, base, x)


def test_values_of_the_same_rank_and_scaling_go_in_bit_for_bit(base, tmp_path):
    other = saved(base, tmp_path, r=3)
    model = adapted(copy.deepcopy(base), r=3)
    hot_swap(model, tmp_path)
    for (_, mine), (_, its) in zip(lora_layers(model), lora_layers(other), strict=True):
        assert torch.equal(mine.lora_A, its.lora_A)
        assert torch.equal(mine.lora_B, its.lora_B)


def test_nothing_of_the_adapter_before_is_left(base, tmp_path):
    saved(base, tmp_path, r=1, target_modules=["0"])
    model = adapted(copy.deepcopy(base), r=3)
    hot_swap(model, tmp_path)
    assert model[0].lora_A[:1].all()
    assert not model[0].lora_A[1:].any()
    assert not model[0].lora_B[:, 1:].any()
    assert not model[2].lora_A.any()
    assert not model[2].lora_B.any()


def test_an_adapter_that_is_not_in_use_can_be_swapped(base, tmp_path):
    other = saved(base, tmp_path, r=2)
    model = add_adapter(adapted(copy.deepcopy(base)), "fr", LoRAConfig(r=3))
    x = torch.randn(5, 6)
    before = model(x)
    hot_swap(model, tmp_path, name="fr")
    assert torch.equal(model(x), before)
    set_adapter(model, "fr")
    assert_computes(model.eval(), other, base, x)


def test_a_swapped_adapter_is_saved_as_what_it_computes(base, tmp_path):
    other = saved(base, tmp_path, r=1, alpha=5)
    model = adapted(copy.deepcopy(base), r=2).eval()
    hot_swap(model, tmp_path)
    save_pretrained(model, tmp_path / "again")
    again = load_pretrained(copy.deepcopy(base), tmp_path / "again").eval()
    assert_computes(again, other, base, torch.randn(5, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 5}, r"'0' must have r <= 2 and \[N, K\] = \[5, 6\]; the file has r = 5 and \[5, 6\]"),
        ({"r": 2, "target_modules": ["0"], "modules_to_save": ["2"]}, "modules_to_save must be empty"),
    ],
)
def test_what_does_not_go_in_is_refused_and_changes_nothing(base, options, message, tmp_path):
    saved(base, tmp_path, **options)
    model = adapted(copy.deepcopy(base))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=message):
        hot_swap(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fault_in_the_last_layer_changes_nothing(base, tmp_path):
    other = adapted(copy.deepcopy(base))
    nn.init.constant_(other[2].lora_B, 60_000.0)
    save_pretrained(other, tmp_path)
    model = apply_lora(copy.deepcopy(base).half(), LoRAConfig(r=2, alpha=0.5, adapter_dtype="float16"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"B of '2' must be finite in torch.float16 once scaled"):
        hot_swap(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_the_model_must_be_for_a_swap_is_said(base, tmp_path):
    saved(base, tmp_path)
    model = adapted(copy.deepcopy(base))
    with pytest.raises(ValueError, match="name must be one of default; got 'fr'"):
        hot_swap(model, tmp_path, name="fr")
    merge_lora(model)
    with pytest.raises(AdapterError, match="must be unmerged before loading; merged: '0', '2'"):
        hot_swap(model, tmp_path)
    only = adapted(copy.deepcopy(base), target_modules=["0"])
    with pytest.raises(AdapterError, match="must have no layers but the adapter's; it has '2' too"):
        hot_swap(only, tmp_path)
    with pytest.raises(ValueError, match="model must have LoRA layers"):
        hot_swap(mlp(), tmp_path)
