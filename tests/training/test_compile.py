"""torch.compile over forward and backward: one graph, eager's numbers, no compiling anew."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from torch.utils.checkpoint import checkpoint

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    load_pretrained,
    merge_lora,
    save_pretrained,
    set_lora_enabled,
)
from fastlora.measuring.errors import assert_within_budget
from tests.cases import quick
from tests.models import mlp, with_update
from tests.training.nets import DEVICE, batch, gradients_of, net, same_bits

# Dynamo looks at an autograd.Function by instantiating it, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_cache():
    torch.compiler.reset()


def compiled(model, backend="aot_eager"):
    return torch.compile(model, fullgraph=True, backend=backend)


def test_batches_of_any_length_take_the_second_compilation_forward_and_backward():
    model, counter = net(), CompileCounterWithBackend("aot_eager")
    ours, frames = compiled(model, counter), []
    for rows in (3, 8, 33, 70):
        x = batch(rows)
        assert same_bits(gradients_of(model, x, ours), gradients_of(model, x))
        frames.append(counter.frame_count)
    assert frames == [1, 2, 2, 2]


def test_switching_lora_off_and_on_compiles_each_state_once():
    model, x = net(), batch()
    counter = CompileCounterWithBackend("aot_eager")
    ours, outputs = compiled(model, counter), []
    for enabled in (True, False, True, False):
        set_lora_enabled(model, enabled)
        outputs.append(ours(x))
        assert torch.equal(outputs[-1], model(x))
    assert counter.frame_count == 2
    assert not torch.equal(outputs[0], outputs[1])
    set_lora_enabled(model, True)
    merge_lora(model)
    assert torch.equal(ours(x), model(x))


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype", "autocast"),
    [
        (torch.bfloat16, torch.float32, None),
        (torch.float16, None, None),
        (torch.float32, None, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float16),
    ],
    ids=str,
)
def test_mixed_dtypes_and_autocast_give_eagers_bits(dtype, adapter_dtype, autocast):
    model, x = net(dropout=0.3, dtype=dtype, adapter_dtype=adapter_dtype), batch(dtype=dtype)
    ours = compiled(model)
    with torch.autocast(DEVICE, autocast, enabled=autocast is not None):
        assert same_bits(gradients_of(model, x, ours), gradients_of(model, x))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # from Inductor's own imports
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.0))
def test_inductor_keeps_the_error_budget(dropout):
    model, x = net(dropout), batch()
    # Inductor draws from a generator of its own unless told to keep eager's.
    with inductor.patch(fallback_random=True):
        ours = gradients_of(model, x, compiled(model, "inductor"))
    eager = gradients_of(model, x)
    if dropout:  # the mask of an fp64 run is another one
        torch.testing.assert_close(ours, eager)
        return
    truth = gradients_of(model.double(), x.detach().double().requires_grad_())
    for i, (one, other, exact) in enumerate(zip(ours, eager, truth, strict=True)):
        assert_within_budget(f"gradient {i}", one, other, exact)


def test_what_is_saved_for_backward_is_what_eager_saves():
    model, x = net(0.3)[0], batch()
    ours = compiled(model)

    def saved(run):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (shapes.append((tuple(tensor.shape), tensor.dtype)), tensor)[1],
            lambda tensor: tensor,
        ):
            run(x)
        return sorted(shapes, key=str)

    ours(x)
    assert saved(ours) == saved(model)


@pytest.mark.parametrize("inside", [True, False])
def test_checkpointing_and_compiling_compose_in_either_order(inside):
    model, x = net(0.3), batch()

    def checkpointed(x, run=model):
        return checkpoint(run, x, use_reentrant=False)

    if inside:
        ours = compiled(checkpointed)
    else:
        whole = compiled(model)
        ours = lambda x: checkpointed(x, whole)  # noqa: E731 - as short as what it stands beside
    assert same_bits(gradients_of(model, x, ours), gradients_of(model, x))


@pytest.mark.parametrize("saves_compiled", [True, False])
def test_checkpoints_of_compiled_and_eager_models_interchange(saves_compiled, tmp_path):
    torch.manual_seed(1)
    base = mlp().state_dict()
    x = torch.randn(4, 6)

    def pair(is_compiled):
        model = mlp()
        model.load_state_dict(base)
        model = apply_lora(model, LoRAConfig(r=2))
        if is_compiled:
            model.compile(fullgraph=True, backend="aot_eager")
        return model, torch.compile(model, backend="aot_eager") if is_compiled else model

    (source, saver), (target, loader) = pair(saves_compiled), pair(not saves_compiled)
    with_update(source)
    save_pretrained(saver, tmp_path)
    assert torch.equal(load_pretrained(loader, tmp_path)(x), saver(x))
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    target.load_state_dict(source.state_dict())
    assert torch.equal(loader(x), saver(x))


@pytest.mark.exhaustive
def test_dora_is_one_graph_with_eagers_numbers():
    torch.manual_seed(0)
    layer = FusedLoRALinear(7, 5, r=2, dora=True)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(4, 7, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (x, x[:3]):
        found, wanted = (
            (y := run(rows), *torch.autograd.grad(y.square().sum(), (x, *layer.active())))
            for run in (compiled, layer)
        )
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
