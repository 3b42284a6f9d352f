"""Each adapter has its own version of each module to save: switching, training, states and files."""

import copy
import pickle

import peft
import pytest
import torch

from fastlora import (
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    combine_adapters,
    delete_adapter,
    load_pretrained,
    parameter_report,
    remove_lora,
    save_pretrained,
    set_adapter,
    unfreeze,
    use_adapter,
)
from fastlora.model.versions import CHILD, idle_versions, state_of
from tests.models import NetWithHead, with_update

X = torch.randn(7, 6)


def step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    model(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def two(base=None):
    """A net with the adapters "default", in use, and "fr", each trained with its own norm and head."""
    options = {"r": 2, "target_modules": ["body"]}
    model = apply_lora(base or NetWithHead(), LoRAConfig(modules_to_save=["norm", "score"], **options))
    add_adapter(model, "fr", LoRAConfig(**options))
    with_update(model)
    step(model)
    with use_adapter(model, "fr"):
        step(step(model))
    return model.eval()


def outputs(model):
    found = {}
    for name in ("default", "fr"):
        with use_adapter(model, name):
            found[name] = model(X).detach()
    return found


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_one_adapter_leaves_the_others_head_and_norm_as_they_were():
    torch.manual_seed(0)
    model = two()
    before = {key: value.clone() for key, value in state_of(model.score, "default").items()}
    mean = model.norm.running_mean.clone()
    parameters = [p for p in model.score.parameters() if p.requires_grad]
    set_adapter(model, "fr")
    assert not any(p.requires_grad for p in parameters)
    assert [p.requires_grad for p in model.score.parameters(recurse=True)].count(True) == 4
    step(model)
    assert not torch.equal(model.norm.running_mean, mean)
    set_adapter(model, "default")
    assert same(state_of(model.score, "default"), before)
    assert [p for p in model.score.parameters() if p.requires_grad] == parameters
    assert torch.equal(model.norm.running_mean, mean)
    one, other = outputs(model).values()
    assert not torch.allclose(one, other)


def test_states_and_copies_keep_all_whichever_is_in_use():
    torch.manual_seed(0)
    model = two()
    wanted = outputs(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), two()):
        set_adapter(model, "fr")
        twin.load_state_dict(model.state_dict())
        assert same(outputs(twin), wanted)
        set_adapter(model, "default")


def test_files_hold_each_adapters_own_and_are_loaded_as_such(tmp_path):
    torch.manual_seed(0)
    base = NetWithHead().eval()
    model = two(copy.deepcopy(base))
    wanted = outputs(model)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(copy.deepcopy(base), tmp_path)
    load_pretrained(loaded, tmp_path / "fr", name="fr")
    assert same(outputs(loaded), wanted)
    load_pretrained(loaded, tmp_path, name="fr")  # refilled while it is not in use
    assert torch.equal(outputs(loaded)["fr"], wanted["default"])
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    theirs.load_adapter(str(tmp_path / "fr"), "fr")
    for name, y in wanted.items():
        theirs.set_adapter(name)
        torch.testing.assert_close(theirs.eval()(X), y)


def test_an_adapter_may_be_the_first_to_train_a_module(tmp_path):
    torch.manual_seed(0)
    base = NetWithHead().eval()
    options = {"r": 2, "target_modules": ["body"]}
    model = with_update(apply_lora(copy.deepcopy(base), LoRAConfig(**options)))
    add_adapter(model, "fr", LoRAConfig(modules_to_save=["score"], **options))
    assert not any(p.requires_grad for p in model.score.parameters())
    with use_adapter(model, "fr"):
        assert model.score[0].weight.requires_grad
        step(model)
    assert same(state_of(model.score, "default"), state_of(base.score, "default"))
    assert not same(state_of(model.score, "fr"), state_of(base.score, "fr"))
    assert not model.score[0].weight.requires_grad
    with pytest.raises(ValueError, match="modules_to_save of a further adapter must be the model's, 'score'"):
        add_adapter(model, "de", LoRAConfig(modules_to_save=["norm"], **options))
    model.norm.load_state_dict(base.norm.state_dict())
    save_pretrained(model, tmp_path, adapters=["fr"])
    other = with_update(apply_lora(copy.deepcopy(base), LoRAConfig(**options)))
    load_pretrained(other, tmp_path / "fr", name="fr")
    assert same(state_of(other.score, "fr"), state_of(model.score, "fr"))
    assert same(state_of(other.score, "default"), state_of(base.score, "default"))


def test_a_combined_adapter_has_a_copy_of_those_in_use_and_says_so():
    model = two()
    with pytest.warns(
        UserWarning, match="'both' has a copy of those of 'default', which are 'norm', 'score'"
    ):
        combine_adapters(model, {"default": 1.0, "fr": 1.0}, "both")
    assert same(state_of(model.score, "both"), state_of(model.score, "default"))


def test_deleting_and_removing_take_them_away():
    model = two()
    heads = sum(p.numel() for p in NetWithHead().parameters())
    assert parameter_report(model).base == heads
    unfreeze(model)
    assert not any(p.requires_grad for p in idle_versions(model))
    delete_adapter(model, "fr")
    assert not list(idle_versions(model))
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["body"]))
    y = model(X)
    remove_lora(model, merge=True)
    assert not [name for name, _ in model.named_modules() if CHILD in name]
    assert model.state_dict().keys() == NetWithHead().state_dict().keys()
    torch.testing.assert_close(model(X), y)


def test_a_batch_that_mixes_them_is_refused():
    model = two()
    with adapter_batch(model, ["default"] * 7):
        model(X)
    with pytest.raises(ValueError, match="rows of 'fr'"), adapter_batch(model, ["fr"] * 7):
        pass
