"""Several adapters in state dicts, copies and pickles."""

import copy
import io
import pickle

import pytest
import torch

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
