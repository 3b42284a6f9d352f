"""LoRA on one packed layer: numbers, state, copies, and what is refused."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, set_backend
from fastlora.accounting.activations import saved_bytes
from fastlora.formats.format import Format
from fastlora.layer.base_weights import frozen_weight
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.routes import dequantize as unpacking
from tests.packed import MAKERS, RUNS, assert_right, packed, results, small_inputs

exhaustive = pytest.mark.exhaustive
FORMATS = list(MAKERS)
HALF = torch.bfloat16


def wrapped(inputs, format="bnb-4bit", **options):
    """A LoRA layer of ours on a packed layer with the inputs' W and b, B not zero."""
    layer = QuantizedLoRALinear.from_linear(packed(inputs, format, **options), r=inputs.A.shape[0])
    nn.init.normal_(layer.lora_B)
    return layer


def equal(left, right):
    """torch.equal, also for torchao's subclasses, which have none."""
    return all(map(torch.equal, *([getattr(t, "qdata", t), getattr(t, "scale", t)] for t in (left, right))))


@pytest.fixture
def unpackings(monkeypatch):
    """A list that grows by one format name each time a W is unpacked on the torch path."""
    seen = []
    for one in unpacking.FORMATS.values():

        def counted(base, original=one.dequantize):
            seen.append(base.format)
            return original(base)

        monkeypatch.setattr(one, "dequantize", counted, raising=True)
    return seen


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [HALF, pytest.param(torch.float32, marks=exhaustive)], ids=str)
def test_results_are_those_of_the_unpacked_weight(format, dtype):
    inputs = small_inputs(dtype, format)
    layer = wrapped(inputs, format)
    assert layer.lora_A.dtype == torch.float32
    assert_right(results(layer, inputs), inputs, frozen_weight(layer))


def test_the_kernels_unpack_and_multiply_on_their_path():
    inputs = small_inputs(torch.float16)
    layer = wrapped(inputs)
    with set_backend("triton"):
        found = results(layer, inputs)
    assert_right(found, inputs, frozen_weight(layer))


def test_without_lora_it_computes_what_the_librarys_layer_does():
    inputs = small_inputs(HALF)
    theirs = packed(inputs)
    layer = wrapped(inputs)
    layer.enabled = False
    x = inputs.x.clone().requires_grad_()
    assert torch.equal(layer(inputs.x), theirs(inputs.x))
    ours, dx = (torch.autograd.grad(one(x), x, inputs.dy)[0] for one in (layer, theirs))
    assert torch.equal(ours, dx)


def test_it_computes_in_the_layers_compute_dtype_and_answers_in_xs():
    inputs = small_inputs()
    layer = wrapped(inputs, compute_dtype=HALF)
    narrow = QuantizedLoRALinear.from_linear(layer.to_linear(merge=False), r=3)
    narrow.adapters.load_state_dict(layer.adapters.state_dict())
    y = layer(inputs.x)
    assert y.dtype == torch.float32
    assert torch.equal(y, narrow(inputs.x.to(HALF)).float())


def test_backward_saves_x_and_p_and_nothing_of_ws_size():
    inputs = small_inputs(HALF)
    layer = wrapped(inputs)
    own = [*layer.parameters(), *layer.base.tensors]
    x = inputs.x.requires_grad_()
    assert saved_bytes(lambda: layer(x), own) == x.nbytes + 4 * 7 * 3
    layer.enabled = False
    assert saved_bytes(lambda: layer(x), own) == 0


def test_w_is_unpacked_once_a_pass_and_not_at_all_where_x_needs_no_gradient(unpackings):
    inputs = small_inputs()
    layer = wrapped(inputs)
    layer(inputs.x).backward(inputs.dy)
    assert unpackings == ["bnb-4bit"]
    layer(inputs.x.requires_grad_()).backward(inputs.dy)
    assert unpackings == ["bnb-4bit"] * 3


def test_dropout_takes_the_same_mask_in_both_passes():
    inputs = small_inputs()
    layer = wrapped(inputs)
    layer.dropout = 0.5
    plain = FusedLoRALinear.from_linear(nn.Linear(50, 37), r=3, dropout=0.5)
    with torch.no_grad():
        plain.weight.copy_(frozen_weight(layer))
        plain.bias.copy_(layer.bias)
    plain.adapters.load_state_dict(layer.adapters.state_dict())
    found = []
    for one in (layer, plain):
        torch.manual_seed(0)
        x = inputs.x.clone().requires_grad_()
        y = one(x)
        found.append([y, *torch.autograd.grad(y, (x, one.lora_A, one.lora_B), inputs.dy)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("format", FORMATS)
def test_the_state_dict_has_the_librarys_keys_and_values(format):
    inputs = small_inputs(format=format)
    theirs = packed(inputs, format)
    layer = wrapped(inputs, format)
    ours, wanted = layer.state_dict(), theirs.state_dict()
    assert set(ours) == {*wanted, "adapters.default.lora_A", "adapters.default.lora_B"}
    assert all(equal(ours[name], value) for name, value in wanted.items())


def _skip_unless_copied(theirs, way):
    """Plain pickle knows no fp8, and torchao's layers cannot be pickled themselves."""
    try:
        pickle.loads(pickle.dumps(theirs)) if way == "pickle" else torch.save(theirs, io.BytesIO())
    except AttributeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "to"])
def test_copies_compute_the_same(format, way):
    inputs = small_inputs(format=format)
    if way != "deepcopy":
        _skip_unless_copied(packed(inputs, format), way)
    layer = wrapped(inputs, format)
    if way == "deepcopy":
        again = copy.deepcopy(layer)
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(layer))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    else:
        again = copy.deepcopy(layer).to("cpu")
    assert type(again) is type(layer)
    assert torch.equal(again(inputs.x), layer(inputs.x))


def test_eval_on_a_cpu_leaves_the_librarys_layout_alone():
    layer = wrapped(small_inputs()).eval()
    layer.support_avx512bf16_for_cpu = True  # as on such a CPU the library's own forward would repack
    with torch.no_grad():
        layer(torch.randn(2, 50))
        layer.enabled = False
        layer(torch.randn(2, 50))
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("format", FORMATS)
def test_without_merging_the_librarys_own_layer_comes_back(format):
    inputs = small_inputs(format=format)
    theirs = packed(inputs, format)
    layer = QuantizedLoRALinear.from_linear(theirs)
    back = layer.to_linear(merge=False)
    assert type(back) is type(theirs)
    assert back._parameters["W_q" if format == "hqq" else "weight"] is layer.weight
    assert vars(back).keys() == vars(theirs).keys()
    if format in RUNS:
        assert torch.equal(back(inputs.x), theirs(inputs.x))


def test_merging_gives_a_plain_layer_and_refuses_to_pack_anew():
    inputs = small_inputs(HALF)
    layer = wrapped(inputs)
    plain = layer.to_linear()
    assert type(plain) is nn.Linear
    assert plain.weight.dtype == HALF
    assert torch.equal(plain.weight, layer.effective_weight())
    assert 0 < layer.rounding() < 1
    with pytest.raises(TypeError, match=r"packed again as bitsandbytes NF4 or FP4, W \+ s B A would lose"):
        layer.merge()


def test_w_cannot_be_drawn_anew():
    with pytest.raises(TypeError, match="reset_parameters must draw W, and this one is packed"):
        wrapped(small_inputs()).reset_parameters()


def test_a_packed_tensor_spread_over_processes_is_refused(monkeypatch):
    layer = wrapped(small_inputs())

    class DTensor(nn.Parameter):  # told by its class: distributing one for real takes processes
        pass

    state = layer.weight.quant_state
    layer.weight = DTensor(layer.weight.data, requires_grad=False)
    layer.quant_state = state
    with pytest.raises(
        ValueError, match=r"must be whole; it is spread over processes.*leave quantized layers out"
    ):
        layer(torch.randn(2, 50))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_bit(use_reentrant):
    inputs = small_inputs()
    layer = wrapped(inputs)
    layer.dropout = 0.5
    found = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        x = inputs.x.clone().requires_grad_()
        layer.zero_grad()
        y = call(x)
        y.backward(inputs.dy)
        found.append([y, x.grad, layer.lora_A.grad, layer.lora_B.grad])
    assert all(map(torch.equal, *found))


def test_autocast_follows_the_library_whose_layer_keeps_its_dtype():
    inputs = small_inputs()
    layer = wrapped(inputs, compute_dtype=HALF)
    with torch.autocast("cpu", HALF):
        y = layer(inputs.x)
    assert torch.equal(y, layer(inputs.x))
    assert y.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it itself
def test_compiled_whole_it_keeps_w_packed():
    inputs = small_inputs()
    layer = wrapped(inputs)
    kept = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    x = inputs.x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    compiled = [y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), inputs.dy)]
    assert (37, 50) not in kept
    y = layer(x)
    eager = [y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), inputs.dy)]
    assert all(map(torch.equal, compiled, eager))


def test_gradients_can_be_differentiated_again_though_x_takes_none():
    inputs = small_inputs().to(torch.float64)
    layer = QuantizedLoRALinear.from_linear(packed(small_inputs()), r=3, adapter_dtype=torch.float64)
    nn.init.normal_(layer.lora_B)
    A, B = layer.lora_A, layer.lora_B
    (dA,) = torch.autograd.grad(layer(inputs.x).square().sum(), A, create_graph=True)
    (again,) = torch.autograd.grad(dA.square().sum(), B)
    W = frozen_weight(layer).double()
    y = inputs.x @ W.t() + layer.scaling * inputs.x @ A.t() @ B.t() + layer.bias
    (wanted,) = torch.autograd.grad(y.square().sum(), A, create_graph=True)
    assert torch.allclose(again, torch.autograd.grad(wanted.square().sum(), B)[0])


def test_torch_func_goes_through_separate_operations():
    inputs = small_inputs()
    layer = wrapped(inputs)
    rows = torch.func.vmap(layer)(inputs.x)
    assert torch.allclose(rows, layer(inputs.x), atol=1e-5)


def test_only_packed_layers_of_known_formats_are_wrapped():
    with pytest.raises(TypeError, match="linear must be a packed linear layer of a known format; got Linear"):
        QuantizedLoRALinear.from_linear(nn.Linear(3, 2))
    layer = packed(small_inputs())
    layer.forward = partial(layer.forward)
    with pytest.raises(TypeError, match="its class's forward"):
        apply_lora(nn.Sequential(layer), LoRAConfig())


def test_every_format_says_what_it_is():
    for name, one in unpacking.FORMATS.items():
        assert isinstance(one, Format)
        assert one.name == name
        assert one.about
