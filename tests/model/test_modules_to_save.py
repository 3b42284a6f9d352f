"""Modules to save: trained in full beside the updates, and saved with them."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    add_adapter,
    apply_lora,
    freeze,
    load_pretrained,
    lora_layers,
    remove_lora,
    save_pretrained,
    set_adapter,
)
from fastlora.model.modules_to_save import saved_modules
from tests.models import NetWithHead, TiedLM, adapted, mlp, with_update


def trained(base=None, steps=3, **options):
    """A net with LoRA on its body, its norm and its head trained in full; and the net it was made from."""
    base = base or NetWithHead()
    config = {"r": 2, "target_modules": ["body"], "modules_to_save": ["norm", "score"], **options}
    model = with_update(apply_lora(copy.deepcopy(base), LoRAConfig(**config)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(7, 6)).square().mean().backward()
        optimizer.step()
    return model.eval(), base.eval()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


OWN = {"norm.weight", "norm.bias", *(f"score.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))}


def test_they_are_trained_with_the_updates_and_nothing_else_is():
    model, base = trained()
    assert trainable(model) == {"body.adapters.default.lora_A", "body.adapters.default.lora_B", *OWN}
    assert torch.equal(model.body.weight, base.body.weight)
    assert not torch.equal(model.score[2].weight, base.score[2].weight)


def test_all_linear_leaves_them_out():
    model = apply_lora(NetWithHead(), LoRAConfig(r=2, modules_to_save=["score"]))
    assert [name for name, _ in lora_layers(model)] == ["body"]


def test_freezing_keeps_them_trainable_and_removing_lora_forgets_them():
    model, _ = trained()
    freeze(model)
    assert trainable(model) >= OWN
    remove_lora(model)
    assert list(saved_modules(model)) == []


def test_they_are_saved_whole_with_their_buffers_and_loaded(tmp_path):
    model, base = trained()
    save_pretrained(model, tmp_path)
    x = torch.randn(7, 6)
    loaded = load_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded.norm.running_mean, model.norm.running_mean)
    assert torch.equal(loaded.norm.num_batches_tracked, model.norm.num_batches_tracked)
    assert torch.equal(loaded(x), model(x))
    assert trainable(loaded) == trainable(model)


def test_loading_again_into_the_trained_model_puts_the_saved_values_back(tmp_path):
    model, base = trained()
    save_pretrained(model, tmp_path)
    x = torch.randn(7, 6)
    expected = model(x)
    other, _ = trained(base)
    parameters = [id(p) for p in other.parameters()]
    load_pretrained(other, tmp_path)
    assert torch.equal(other(x), expected)
    assert [id(p) for p in other.parameters()] == parameters


def test_a_copy_and_a_pickle_keep_the_mark():
    assert [name for name, _ in saved_modules(copy.deepcopy(trained()[0]))] == ["norm", "score"]


def test_a_further_adapter_has_its_own(tmp_path):
    model, base = trained()
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["body"]))
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(copy.deepcopy(base), tmp_path)
    load_pretrained(loaded, tmp_path / "fr", name="fr")
    x = torch.randn(7, 6)
    assert torch.equal(loaded(x), model(x))
    other, _ = trained(base)
    before = other(x)
    load_pretrained(other, tmp_path / "fr", name="fr")
    assert torch.equal(other(x), before)
    set_adapter(other, "fr")
    set_adapter(model, "fr")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (NetWithHead, {"modules_to_save": ["scor"]}, "modules_to_save: 'scor' must match a module"),
        (NetWithHead, {"modules_to_save": ["score.1"]}, r"modules with parameters; 'score.1' has none"),
        (
            NetWithHead,
            {"target_modules": ["score.0"], "modules_to_save": ["score"]},
            r"target_modules must not overlap with modules_to_save or .*; both mean 'score.0'",
        ),
        (
            TiedLM,
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            r"'lm_head' shares one with 'embed.weight', which would be trained too",
        ),
        (
            lambda: adapted(mlp(), target_modules=["2"]),
            {"target_modules": ["0"], "modules_to_save": ["2"]},
            "modules_to_save must name modules without LoRA layers; '2' has some",
        ),
    ],
)
def test_what_cannot_be_trained_apart_is_refused_and_changes_nothing(make, options, message):
    model = make()
    modules, before = list(model.modules()), trainable(model)
    with pytest.raises(ValueError, match=message):
        apply_lora(model, LoRAConfig(r=2, **options))
    assert list(model.modules()) == modules
    assert trainable(model) == before
    assert list(saved_modules(model)) == []


@pytest.mark.parametrize("names", ["score", ["score", ""], [], [3]])
def test_unsound_names_are_refused(names):
    with pytest.raises((TypeError, ValueError), match="modules_to_save must"):
        LoRAConfig(modules_to_save=names)


def wider():
    net = NetWithHead()
    net.score[2] = nn.Linear(4, 2)
    return net


def without_bias():
    net = NetWithHead()
    net.score[0] = nn.Linear(5, 4, bias=False)
    return net


def with_more():
    net = NetWithHead()
    net.score.append(nn.Linear(3, 3))
    return net


def headless():
    net = NetWithHead()
    del net.score
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wider, r"'score.2.bias' must have shape = \[2\]; the file has \[3\]"),
        (without_bias, r"modules_to_save must hold the model's tensors alone; 'score.0.bias' is none"),
        (with_more, r"modules_to_save must be whole; the file lacks 'score.3.weight', 'score.3.bias'"),
        (headless, r"must belong to a module that modules_to_save names"),
        (
            lambda: trained(modules_to_save=["norm"])[0],
            r"modules_to_save must be the model's, 'norm'; the file has 'norm', 'score'",
        ),
    ],
)
def test_files_whose_modules_are_not_the_models_are_refused_and_change_nothing(make, message, tmp_path):
    save_pretrained(trained()[0], tmp_path)
    model = make()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(AdapterError, match=message):
        load_pretrained(model, tmp_path)
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_with_an_update_inside_a_module_to_save_is_refused_and_changes_nothing(tmp_path):
    save_pretrained(trained()[0], tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.score.0.lora_A.weight"] = torch.ones(2, 5)
    tensors["base_model.model.score.0.lora_B.weight"] = torch.ones(4, 2)
    save_file(tensors, file)
    model = NetWithHead()
    before = list(model.modules())
    with pytest.raises(AdapterError, match=r"model's tensors alone; 'score.0.lora_A.weight' is none"):
        load_pretrained(model, tmp_path)
    assert list(model.modules()) == before
