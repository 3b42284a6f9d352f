"""Under torch.set_default_device, what a layer computes lies where the layer does."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlora
from fastlora import LoRAConfig, adapter_batch, add_adapter, apply_lora, set_backend, train_adapters

MAKERS = "tensor zeros ones empty arange full rand randn randint randperm eye linspace as_tensor"
# They run in a process of their own, or on a device that they choose.
PROGRAMS = ("recipes", "accounting", "tuning", "measuring", "cli")


@pytest.fixture
def elsewhere():
    """A default device that nobody's tensors lie on: what is made there by mistake is found out."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def _net():
    with torch.device("cpu"):
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "options", [{}, {"dora": True}, {"lora_bias": True}], ids=lambda each: "".join(each) or "plain"
)
def test_layers_train_with_dropout(options, backend, elsewhere):
    with set_backend(backend):
        model = apply_lora(_net(), LoRAConfig(r=2, dropout=0.3, **options))
        model(torch.randn(4, 6, device="cpu")).sum().backward()
    assert {each.grad.device.type for each in model.parameters() if each.requires_grad} == {"cpu"}


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rows_of_several_adapters_train_and_are_differentiated_twice(backend, elsewhere):
    model = apply_lora(_net()[2], LoRAConfig(r=2, dropout=0.3))
    add_adapter(model, "fr", LoRAConfig(r=3, dropout=0.3))
    train_adapters(model, ["default", "fr"])
    x = torch.randn(3, 6, device="cpu", requires_grad=True)
    with set_backend(backend), adapter_batch(model, ["default", "fr", None]):
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
    assert {each.grad.device.type for each in model.parameters() if each.requires_grad} == {"cpu"}


def test_files_are_written_and_read(elsewhere, tmp_path):
    model, other = apply_lora(_net(), LoRAConfig(r=2)), _net()
    model(torch.randn(4, 6, device="cpu"))
    with pytest.warns(UserWarning, match="buffers of frozen modules changed"):
        fastlora.save_pretrained(model, tmp_path)
    fastlora.load_pretrained(other, tmp_path)
    assert torch.equal(other[0].lora_A, model[0].lora_A)


def test_every_tensor_that_the_library_makes_names_its_device():
    package = Path(fastlora.__file__).parent
    for file in package.rglob("*.py"):
        if file.relative_to(package).parts[0] in PROGRAMS:
            continue
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                made = ast.unparse(call.func).removeprefix("torch.") in MAKERS.split()
                named = any(each.arg in ("device", None) for each in call.keywords)
                assert named or not made, f"{file}:{call.lineno}"
