"""FusedLoRALinear stands in for nn.Linear: attributes, shapes, copies, checkpoints, errors."""

import pytest
import torch
from torch import nn

from fastlora import FusedLoRALinear
from tests.models import trained_layer, with_update

SHAPES = [(5,), (1, 5), (7, 5), (2, 3, 5), (2, 1, 3, 5), (0, 5), (2, 0, 5)]


def pair(**options):
    """A plain layer, and a LoRA layer around it whose update is still zero."""
    linear = nn.Linear(5, 3, **options)
    return linear, FusedLoRALinear.from_linear(linear, r=2)


def of_integers(tensor):
    """Small whole numbers, whose products and sums are exact in fp32 in any order."""
    return tensor.detach().copy_(torch.randint(-4, 5, tensor.shape).to(tensor.dtype))


def trained_on_integers():
    layer = trained_layer()
    for parameter in layer.parameters():
        of_integers(parameter)
    return layer


def test_it_has_the_attributes_of_a_linear_layer():
    layer = FusedLoRALinear(5, 3)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (5, 3)
    assert (layer.weight.shape, layer.bias.shape) == ((3, 5), (3,))
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((8, 5), (3, 8))
    assert repr(layer) == "FusedLoRALinear(in_features=5, out_features=3, bias=True, r=8, alpha=8)"
    assert FusedLoRALinear(5, 3, bias=False).bias is None


def test_its_repr_says_what_is_unusual():
    layer = FusedLoRALinear(5, 3, False, r=2, alpha=0.5, dropout=0.1, rslora=True)
    layer.merge()
    layer.enabled = False
    assert repr(layer).endswith("bias=False, r=2, alpha=0.5, dropout=0.1, rslora, merged, disabled)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_before_training_it_equals_the_plain_layer_bit_for_bit(shape, bias, dtype):
    linear, layer = pair(bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_dimensions_are_rows(shape):
    layer = trained_on_integers()
    x = of_integers(torch.empty(shape)).requires_grad_()
    y = layer(x)
    assert y.shape == (*shape[:-1], 3)
    y.sum().backward()
    assert x.grad.shape == shape
    rows = [layer(row) for row in x.reshape(-1, 5)]
    assert torch.equal(y.reshape(-1, 3), torch.stack(rows) if rows else torch.empty(0, 3))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0].t(),
        lambda x: x[:, 0, ::2].repeat(1, 3)[:, :5],
        lambda x: x.transpose(1, 2)[::2, 1:3],
        lambda x: x[0, :, 0].expand(4, 5),
        lambda x: x[0, :1, :1].expand(4, 5),
        lambda x: x[:, :, :1].transpose(1, 2).expand(6, 4, 5),
        lambda x: x.flip(0).transpose(1, 2),
    ],
    ids=["transposed", "columns", "slice", "one row", "one number", "inner", "3-D transposed"],
)
def test_strided_input_gives_what_contiguous_input_gives(view):
    layer = trained_on_integers()
    x = view(of_integers(torch.empty(6, 5, 4)))
    strided, dense = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
    dy = of_integers(torch.empty(*x.shape[:-1], 3))
    for inputs in (strided, dense):
        layer(inputs).backward(dy)
    assert torch.equal(layer(strided), layer(dense))
    assert torch.equal(strided.grad, dense.grad)


def test_a_nested_batch_gives_what_its_parts_give():
    layer = trained_on_integers()
    parts = [of_integers(torch.empty(rows, 5)) for rows in (2, 4)]
    y = layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for row, part in zip(y.unbind(), parts, strict=True):
        assert torch.equal(row, layer(part))


def test_the_weight_and_the_bias_are_frozen_and_get_no_gradient():
    layer = trained_layer()
    layer(torch.randn(4, 5)).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "adapters.default.lora_A",
        "adapters.default.lora_B",
    }
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert layer.lora_A.grad.norm() > 0
    assert layer.lora_B.grad.norm() > 0


@pytest.mark.parametrize("state", ["enabled", "disabled", "merged", "dropout"])
def test_asking_for_a_gradient_of_the_frozen_weight_warns_and_gives_none(state):
    layer = trained_layer(dropout=0.5 if state == "dropout" else 0.0)
    layer.enabled = state != "disabled"
    if state == "merged":
        layer.eval().merge()
    layer.weight.requires_grad_()
    with pytest.warns(UserWarning, match="requires_grad is True, but FusedLoRALinear gives it no gradient"):
        layer(torch.randn(4, 5, requires_grad=True)).sum().backward()
    assert layer.weight.grad is None


def test_x_is_never_written_to():
    layer = trained_layer()
    x = torch.randn(4, 5, requires_grad=True)
    before, version = x.detach().clone(), x._version
    layer(x).sum().backward()
    assert torch.equal(x, before)
    assert x._version == version


def test_built_on_meta_it_starts_as_if_built_in_place():
    layer = FusedLoRALinear(5, 3, r=2, device="meta").to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    layer.reset_parameters()
    assert all(p.isfinite().all() for p in layer.parameters())
    assert layer.lora_A.norm() > 0
    assert not layer.lora_B.any()


def test_it_follows_the_shape_of_the_weight_that_linear_computes_with():
    linear = nn.Linear(5, 3)
    linear.weight, linear.bias = nn.Parameter(linear.weight[:2]), nn.Parameter(linear.bias[:2])
    layer = with_update(FusedLoRALinear.from_linear(linear, r=1))
    assert layer(torch.randn(4, 5)).shape == (4, 2)


# torch.compile itself makes an instance of the Function, which torch.autograd then calls deprecated.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_makes_one_graph_of_it():
    layer = trained_layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 5)
    compiled(x).sum().backward()
    gradient, layer.lora_B.grad = layer.lora_B.grad, None
    layer(x).sum().backward()
    assert torch.equal(compiled(x), layer(x))
    assert torch.equal(gradient, layer.lora_B.grad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"r": 0}, ValueError, "r must be an int >= 1; got 0"),
        ({"r": 1.0}, TypeError, "r must be an int >= 1; got 1.0"),
        ({"alpha": float("inf")}, ValueError, "alpha must be a finite number.*got inf"),
        ({"dropout": 1.0}, ValueError, r"dropout must be a probability in \[0, 1\); got 1.0"),
        ({"rslora": "yes"}, TypeError, "rslora must be True or False; got 'yes'"),
        ({"init": "zeros"}, ValueError, "init must be one of gaussian, kaiming, orthogonal; got 'zeros'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be torch.float16, .*got torch.int32"),
        ({"adapter_dtype": torch.int32}, TypeError, "adapter_dtype must be torch.float16, .*got torch.int32"),
    ],
)
def test_an_unsound_argument_is_refused_before_anything_is_allocated(options, error, message):
    with pytest.raises(error, match=message):
        FusedLoRALinear(10**7, 10**7, **options)
    linear = nn.Linear(5, 3)
    if "dtype" not in options:
        with pytest.raises(error, match=message):
            FusedLoRALinear.from_linear(linear, **options)
    assert linear.weight.requires_grad


@pytest.mark.parametrize("state", ["enabled", "disabled", "merged", "dropout"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(4, 6), ValueError, r"x must have shape \[\.\.\., K=5\]; got \[4, 6\]"),
        (torch.randn(()), ValueError, r"x must have shape \[\.\.\., K=5\]; got \[\]"),
        (torch.randn(4, 5).half(), TypeError, r"x must have W's dtype torch.float32; got torch.float16"),
        (torch.ones(4, 5, dtype=torch.long), TypeError, r"x must be floating point.*got torch.int64"),
        (torch.randn(4, 5, device="meta"), ValueError, r"W must be on x's device meta; got cpu"),
    ],
    ids=["last dimension", "0-D", "dtype", "integer", "device"],
)
def test_an_unfit_input_is_refused_in_every_state(x, error, message, state):
    layer = trained_layer(dropout=0.5 if state == "dropout" else 0.0)
    layer.enabled = state != "disabled"
    if state == "merged":
        layer.merge()
    with pytest.raises(error, match=message):
        layer(x)
