"""The gradient of a bias that is trained, in every route; that of x, A and B stays as it is without."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlora import FusedLoRALinear, adapter_batch, lora_linear, set_backend
from fastlora.autograd.dora import dora_linear
from fastlora.formula import oracle
from fastlora.layer.division import Split
from fastlora.measuring.errors import assert_within_budget
from fastlora.measuring.inputs import random_inputs
from tests.models import Block, adapted
from tests.packed import packed, small_inputs
from tests.several_adapters import two

FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def passes(inputs, run):
    """y and all gradients, b's too."""
    leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B, inputs.b)]
    x, A, B, b = leaves
    y = run(x, inputs.W, b, A, B, inputs.s)
    found = (y.detach(), *torch.autograd.grad(y, leaves, inputs.dy))
    return dict(zip(("y", "dx", "dA", "dB", "db"), found, strict=True))


@pytest.mark.parametrize("setting", ["torch", "triton"])
@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [(FP32, FP32), (FP16, FP32), pytest.param(FP16, FP16, marks=pytest.mark.exhaustive)],
    ids=str,
)
@pytest.mark.parametrize("is_dora", [False, True])
def test_it_is_the_sum_of_dy_over_the_rows(is_dora, dtype, adapter_dtype, setting):
    inputs = random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=adapter_dtype)
    m = inputs.W.float().norm(dim=1).mul(1.3).to(adapter_dtype)

    def reference(*operands):
        return oracle.dora(*operands, m.to(operands[0].dtype)) if is_dora else oracle.unfused(*operands)

    def ours(*operands):
        return dora_linear(*operands, m) if is_dora else lora_linear(*operands)

    with set_backend(setting):
        found = passes(inputs, ours)
        without = lora_linear(inputs.x, inputs.W, inputs.b, inputs.A, inputs.B, inputs.s)
    assert is_dora or torch.equal(found["y"], without)
    torchs, truth = passes(inputs, reference), passes(inputs.to(FP64), reference)
    assert found["db"].dtype == inputs.b.dtype
    for name in found:
        extra = torch.finfo(dtype).eps ** 2 if adapter_dtype != dtype else 0.0
        assert_within_budget(name, found[name], torchs[name], truth[name], extra=extra)


def test_further_dimensions_no_rows_and_one():
    inputs = random_inputs(6, 5, 4, 2, dtype=FP64)
    for shape in ((2, 3, 5), (0, 5), (5,)):
        x, b = torch.randn(shape, dtype=FP64), inputs.b.clone().requires_grad_()
        y = lora_linear(x, inputs.W, b, inputs.A, inputs.B, inputs.s)
        dy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, b, dy)[0], dy.reshape(-1, 4).sum(0))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does
def test_what_is_differentiated_traced_and_compiled_has_it():
    inputs = random_inputs(6, 5, 4, 2, dtype=FP64)
    x, b = inputs.x.clone().requires_grad_(), inputs.b.clone().requires_grad_()

    def loss(b, x=x):
        return lora_linear(x, inputs.W, b, inputs.A, inputs.B, inputs.s).pow(3).sum()

    wanted = torch.autograd.grad(loss(b), b, create_graph=True)[0]
    (twice,) = torch.autograd.grad(wanted.square().sum(), b)
    y = oracle.unfused(x, inputs.W, b, inputs.A, inputs.B, inputs.s)
    plain = torch.autograd.grad(y.pow(3).sum(), b, create_graph=True)[0]
    torch.testing.assert_close(wanted, plain)
    torch.testing.assert_close(twice, torch.autograd.grad(plain.square().sum(), b)[0])
    torch.testing.assert_close(torch.func.grad(loss)(b.detach()), plain)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(b), b)[0], plain)


def test_the_output_may_be_changed_in_place():
    inputs = random_inputs(6, 5, 4, 2, dtype=FP64)
    b = inputs.b.clone().requires_grad_()
    y = lora_linear(inputs.x, inputs.W, b, inputs.A, inputs.B, inputs.s)
    before = y.detach().clone()
    F.relu_(y).sum().backward()
    torch.testing.assert_close(b.grad, (before > 0).double().sum(0))


@pytest.mark.parametrize("state", ["enabled", "disabled", "merged", "dropout", "no gradient of x, A or B"])
def test_a_layer_gives_it_in_every_state(state):
    layer = FusedLoRALinear(5, 3, r=2, dropout=0.5 if state == "dropout" else 0.0)
    nn.init.normal_(layer.lora_B)
    layer.enabled = state != "disabled"
    if state == "merged":
        layer.eval().merge()
    if state.startswith("no"):
        layer.requires_grad_(False)
    layer.bias.requires_grad_()
    y = layer(torch.randn(4, 5))
    y.square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, 2 * y.detach().sum(0))
    with torch.no_grad():
        assert not layer(torch.randn(4, 5)).requires_grad


def test_autocast_gives_it_in_its_own_dtype():
    layer = FusedLoRALinear(5, 3, r=2)
    nn.init.normal_(layer.lora_B)
    layer.bias.requires_grad_()
    with torch.autocast("cpu", BF16):
        y = layer(torch.randn(4, 5))
    y.float().sum().backward()
    assert layer.bias.grad.dtype == FP32
    assert torch.equal(layer.bias.grad, torch.full((3,), 4.0))


@pytest.mark.parametrize("names", [["default", "fr", None, "fr"], [None] * 4])
def test_rows_of_several_adapters_give_it(names):
    model = two(lambda: nn.Sequential(nn.Linear(5, 3))).eval()
    model[0].bias.requires_grad_()
    with adapter_batch(model, names):
        y = model(torch.randn(4, 5))
        y.square().sum().backward()
    torch.testing.assert_close(model[0].bias.grad, 2 * y.detach().sum(0))


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("options", [{}, {"dora": True}], ids=str)
def test_a_packed_base_gives_it(options, on):
    layer = adapted(nn.Sequential(packed(small_inputs())), **options)[0]
    layer.enabled = on
    layer.bias.requires_grad_()
    y = layer(torch.randn(4, layer.in_features))
    y.square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, 2 * y.detach().sum(0).to(layer.bias.dtype))


def test_a_group_is_computed_member_by_member():
    model = adapted(Block(), group=True)
    model.attn.k_proj.bias.requires_grad_()
    model(torch.randn(4, 4)).sum().backward()
    assert model.attn.k_proj.bias.grad is not None


@pytest.mark.parametrize("split", Split)
def test_a_layer_divided_among_processes_refuses_it(split):
    with pytest.raises(ValueError, match="bias must be frozen"):
        split.local(None, torch.zeros(3, requires_grad=True), None, None)
