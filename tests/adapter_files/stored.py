"""An adapter on disk in either form, and what must be unchanged where a load is refused."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from fastlora import (
    load_adapter,
    load_pretrained,
    lora_layers,
    save_adapter,
    save_pretrained,
)
from tests.models import adapted, mlp


@dataclass
class Store:
    """One of the two forms of an adapter on disk."""

    path: Path

    @property
    def is_directory(self):
        return not self.path.suffix

    @property
    def tensors(self):
        return self.path / "adapter_model.safetensors" if self.is_directory else self.path

    def save(self, model):
        (save_pretrained if self.is_directory else save_adapter)(model, self.path)

    def load(self, model, **options):
        return (load_pretrained if self.is_directory else load_adapter)(model, self.path, **options)


def twins(make=mlp):
    """A model with a trained update, and the plain model it was made from."""
    plain = make()
    return adapted(
        copy.deepcopy(plain), alpha=3, rslora=True, dropout=0.25, init="kaiming"
    ).eval(), plain.eval()


def content(path):
    """Tensors and metadata; the order of the metadata in the file is not fixed."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).tolist() for key in file.keys()}, file.metadata()  # noqa: SIM118


def snapshot(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    options = [(name, layer.alpha, layer.rslora, layer.dropout) for name, layer in lora_layers(model)]
    kinds = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    return state, options, kinds, [(p.requires_grad, p.grad) for p in model.parameters()]


def assert_unchanged(model, before):
    after = snapshot(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
