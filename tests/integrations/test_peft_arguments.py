"""Arguments that are not fused: PEFT's own forward runs, bit for bit, and the reason is counted."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from fastlora.integrations.peft import accelerate_peft, forward_counts
from tests.integrations.peft_models import Subclass, assert_stock, lora_layers, run, twins


def test_offsets_of_activated_lora_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    assert torch.equal(fused(x, alora_offsets=[1, 1, 1]), stock(x, alora_offsets=[1, 1, 1]))
    assert list(forward_counts(fused)) == ["there are arguments beside x"]
    assert torch.equal(fused(x, alora_offsets=None, adapter_names=None), fused(x))
    assert forward_counts(fused)["fused"] == 2


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype", "autocast"),
    [
        (torch.bfloat16, torch.float16, None),
        (torch.float32, torch.bfloat16, None),
        (torch.float64, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, torch.float16),
        (torch.float64, torch.float64, torch.bfloat16),
        (torch.float64, torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_other_dtypes_take_pefts_own_forward(dtype, adapter_dtype, autocast):
    stock, fused = (lora_layers(model.to(dtype))[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(7, 6, dtype=dtype)
    for layer in (stock, fused):
        layer.lora_A.to(adapter_dtype), layer.lora_B.to(adapter_dtype)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert_stock(run(fused, x), run(stock, x), fused, "the dtypes are not ones that are fused")


MISFITS = {
    "x of another dtype": lambda x, layer: layer(x.double()),
    "x of another width": lambda x, layer: layer(x[:, :5]),
    "x without a dimension": lambda x, layer: layer(x[0, 0]),
    "x elsewhere": lambda x, layer: layer(x.to("meta")),
    "x of integers": lambda x, layer: layer(x.long()),
    "an argument too many": lambda x, layer: layer(x, 1),
    "an unknown argument": lambda x, layer: layer(x, scale=None),
    "W put away": lambda x, layer: [setattr(layer.base_layer.weight, "data", torch.empty(0)), layer(x)],
    "A put away": lambda x, layer: [
        setattr(layer.lora_A["default"].weight, "data", torch.empty(0)),
        layer(x),
    ],
}


@pytest.mark.parametrize("call", list(MISFITS.values()), ids=list(MISFITS))
def test_what_does_not_fit_is_pefts_to_refuse(call):
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever PEFT raises
        call(x, stock)
    with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
        call(x, fused)
    assert forward_counts(fused)["fused"] == 0


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested tensors|NestedTensor):UserWarning")
@pytest.mark.parametrize(
    "made",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_mkldnn,
        lambda x: torch.nested.nested_tensor([x, x[:2]]),
    ],
    ids=["COO", "CSR", "oneDNN", "nested"],
)
def test_an_x_of_another_layout_takes_pefts_own_forward(made):
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = made(torch.randn(3, 6))
    ours, theirs = fused(x), stock(x)
    assert (ours.layout, ours.is_nested) == (theirs.layout, theirs.is_nested)
    flat = [y.to_padded_tensor(0) if y.is_nested else y.to_dense() for y in (ours, theirs)]
    assert torch.equal(*flat)
    assert list(forward_counts(fused)) == ["x is not a plain tensor"]


def test_a_tensor_subclass_as_x_takes_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6).as_subclass(Subclass)
    y = fused(x)
    assert type(y) is Subclass
    assert torch.equal(y, stock(x))
    assert list(forward_counts(fused)) == ["x is not a plain tensor"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at the first use
def test_transforms_of_torch_func_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    assert torch.equal(torch.func.vmap(fused)(x), torch.func.vmap(stock)(x))
    ours, theirs = (torch.func.jvp(layer, (x,), (x,)) for layer in (fused, stock))
    assert torch.equal(ours[1], theirs[1])
    assert forward_counts(fused)["fused"] == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode_differentiation_takes_pefts_own_forward():
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    with forward_ad.dual_level():
        ours, theirs = (
            forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent for layer in (fused, stock)
        )
        assert torch.equal(ours, theirs)
    assert forward_counts(fused)["fused"] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_pefts_own_operations():
    _, model = twins()
    layer = lora_layers(model)[0].requires_grad_(False)
    accelerate_peft(layer)
    x = torch.randn(3, 6)
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    assert "LoRALinearFunction" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))
