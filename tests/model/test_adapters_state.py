"""Several adapters in state dicts, copies and pickles."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fastlora import active_adapter, set_adapter
from tests.models import adapted, mlp
from tests.several_adapters import alone, same_state, two


@pytest.mark.parametrize("saving", ["default", "fr"])
@pytest.mark.parametrize("loading", ["default", "fr"])
def test_a_state_dict_does_not_depend_on_which_adapter_is_in_use(saving, loading):
    model, other = two(), two()
    expected = {name: alone(model, name).state_dict() for name in ("default", "fr")}
    set_adapter(model, saving)
    state = model.state_dict()
    assert list(state) == [name for name, _ in two().named_parameters()]
    assert {"0.adapters.default.lora_A", "0.adapters.fr.lora_A"} <= state.keys()
    set_adapter(other, loading)
    other.load_state_dict(state)
    assert active_adapter(other) == loading
    for name, wanted in expected.items():
        assert same_state(alone(other, name).state_dict(), wanted)


def test_a_state_dict_of_layers_without_the_adapter_in_use_loads_too():
    model = two(first={"target_modules": ["0"]}, second={"target_modules": ["2"]})
    other = two(first={"target_modules": ["0"]}, second={"target_modules": ["2"]})
    set_adapter(model, "fr")
    state = model.state_dict()
    assert "2.adapters.default.lora_A" not in state
    other.load_state_dict(state)
    set_adapter(other, "fr")
    assert same_state(other.state_dict(), state)


def test_a_checkpoint_of_the_plain_model_leaves_every_adapter_as_it_is():
    model = two()
    set_adapter(model, "fr")
    before = copy.deepcopy(model.state_dict())
    plain = {key: torch.randn_like(value) for key, value in mlp().state_dict().items()}
    model.load_state_dict(plain)
    after = model.state_dict()
    assert torch.equal(after["0.weight"], plain["0.weight"])
    assert all(torch.equal(after[key], before[key]) for key in before if "lora" in key)


@pytest.mark.parametrize("in_use", ["default", "fr"])
@pytest.mark.parametrize("key", ["0.adapters.default.lora_A", "0.adapters.fr.lora_A"])
def test_a_state_dict_without_an_adapter_is_refused(in_use, key):
    model = two()
    set_adapter(model, in_use)
    state = model.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_A"):
        model.load_state_dict(state)


def test_an_adapter_of_a_state_dict_that_the_model_lacks_is_refused():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.adapters\.fr\.lora_A"):
        adapted(mlp()).load_state_dict(two().state_dict())


def test_copies_pickles_and_dtype_changes_take_all_adapters_along():
    model = two()
    set_adapter(model, "fr")
    x = torch.randn(4, 6)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(copied(x), expected)
        set_adapter(copied, "default")
        assert active_adapter(model) == "fr"
    model.double()
    set_adapter(model, "default")
    assert model[0].lora_A.dtype == torch.float64


def test_attributes_are_the_adapters_in_use_and_none_where_it_has_no_part():
    model = two(first={"target_modules": ["0"]}, second={"target_modules": ["2"]})
    layer = model[0]
    values = (layer.r, layer.alpha, layer.dropout, layer.rslora, layer.init, layer.scaling, layer.adapter)
    assert values == (2, 2.0, 0.0, False, "gaussian", 1.0, "default")
    assert layer.lora_A is layer.adapters["default"].lora_A is layer.active.lora_A
    new = nn.Parameter(torch.randn(2, 6))
    layer.lora_A, layer.alpha = new, 8.0
    assert layer.adapters["default"].lora_A is new
    assert layer.scaling == 4.0
    set_adapter(model, "fr")
    for name in (
        "lora_A",
        "lora_B",
        "r",
        "alpha",
        "dropout",
        "rslora",
        "init",
        "scaling",
        "adapter",
        "active",
    ):
        assert getattr(layer, name) is None
    for name, value in (("lora_A", new), ("alpha", 1.0)):
        with pytest.raises(AttributeError, match=f"{name} must be assigned where the layer has part"):
            setattr(layer, name, value)
    assert set(layer._parameters) == {"weight", "bias"}
    set_adapter(model, "default")
    assert layer.lora_A is new


def test_a_replica_of_data_parallel_computes_with_its_own_copy():
    model = two()
    set_adapter(model, "fr")
    x = torch.randn(4, 6)
    expected = model(x)
    # As torch.nn.parallel.replicate does it, which needs GPUs.
    originals = list(model.modules())
    replicas = {each: each._replicate_for_data_parallel() for each in originals}
    for each, replica in replicas.items():
        for name, child in each._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in each._parameters.items():
            setattr(replica, name, parameter.detach().clone().requires_grad_(parameter.requires_grad))
    replicas[model](x).sum().backward()
    assert torch.equal(replicas[model](x), expected)
    assert replicas[model[0].active].lora_A.grad.any()
    assert model[0].lora_A.grad is None
