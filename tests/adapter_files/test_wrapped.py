"""Models in wrappers: no wrapper's name reaches a file, and every way out and in takes them."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastlora import (
    hot_swap,
    load_adapter,
    load_pretrained,
    lora_layers,
    parameter_report,
    save_adapter,
    save_pretrained,
)
from tests.models import adapted, mlp

# Dynamo's own, as it traces an autograd.Function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class DeepSpeedEngine(nn.Module):
    """Stands for DeepSpeed's, which is told by its name and package."""

    __module__ = "deepspeed.runtime.engine"

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


class Named(nn.Sequential):
    """A model that says where it comes from, as Transformers' do."""

    name_or_path = "some/base"


def base():
    model = Named(*mlp())
    vars(model)["name_or_path"] = "some/base"
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "DeepSpeedEngine": DeepSpeedEngine,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "AveragedModel of DataParallel": lambda model: AveragedModel(nn.DataParallel(model)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_model_is_written_as_the_model_inside(tmp_path, kind):
    model = adapted(base(), modules_to_save=["2"], target_modules=["0"])
    wrapped = WRAPPERS[kind](model)
    for folder, saved in (("plain", model), ("wrapped", wrapped)):
        save_pretrained(saved, tmp_path / folder)
        save_adapter(saved, tmp_path / folder / "one.safetensors")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "wrapped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    # Its metadata have two entries, whose order safetensors leaves to chance.
    one = [load_file(tmp_path / folder / "one.safetensors") for folder in ("plain", "wrapped")]
    assert one[0].keys() == one[1].keys()
    assert all(torch.equal(tensor, one[1][key]) for key, tensor in one[0].items())
    config = json.loads((tmp_path / "wrapped" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["auto_mapping"]["base_model_class"] == "Named"


@pytest.mark.parametrize("kind", WRAPPERS)
def test_an_adapter_is_read_into_a_wrapped_model(tmp_path, kind):
    model, plain = adapted(base()), base()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "lora" not in key})
    x = torch.randn(3, 6)
    save_pretrained(model, tmp_path)
    save_adapter(model, tmp_path / "one.safetensors")
    wrapped = WRAPPERS[kind](copy.deepcopy(plain))
    assert torch.equal(load_pretrained(wrapped, tmp_path)(x), model(x))
    for _, layer in lora_layers(wrapped):
        nn.init.normal_(layer.lora_A)
    hot_swap(wrapped, tmp_path)
    assert torch.equal(wrapped(x), model(x))
    wrapped = WRAPPERS[kind](plain)
    assert torch.equal(load_adapter(wrapped, tmp_path / "one.safetensors")(x), model(x))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_reports_name_the_layers_of_the_model_inside(kind):
    wrapped = WRAPPERS[kind](adapted(base()))
    assert [name for name, _ in lora_layers(wrapped)] == ["0", "2"]
    assert "module." not in str(parameter_report(wrapped))
    assert "_orig_mod" not in str(parameter_report(wrapped))


def test_what_an_averaged_model_saves_are_the_averages(tmp_path):
    model = adapted(base())
    averaged, first = AveragedModel(model), model[0].lora_A.detach().clone()
    nn.init.normal_(model[0].lora_A)
    averaged.update_parameters(model)
    nn.init.normal_(model[0].lora_A)
    averaged.update_parameters(model)
    save_pretrained(averaged, tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.0.lora_A.weight"]
    assert torch.equal(found, averaged.module[0].lora_A)
    assert not torch.equal(found, model[0].lora_A)
    assert not torch.equal(found, first)
