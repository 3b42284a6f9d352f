"""What a step keeps and writes: bytes saved for backward, hooks over all of them, checkpointing, inputs."""

import functools

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fastlora
from fastlora import lora_linear
from fastlora.measuring.inputs import random_inputs
from tests.cases import quick
from tests.training.nets import DEVICE, batch, gradients_of, net, same_bits

pytestmark = pytest.mark.usefixtures("_path")
aten = torch.ops.aten


@pytest.fixture(params=quick(["torch", "triton"], "torch"))
def _path(request):
    with fastlora.set_backend(request.param):
        yield


on_both = pytest.mark.parametrize("_path", ["torch", "triton"], indirect=True)


@on_both
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("base", "adapter", "autocast"),
    [
        (torch.float32, torch.float32, None),
        (torch.float16, torch.float32, None),
        (torch.float32, torch.float32, torch.float16),
        (torch.float16, torch.float16, torch.float16),
    ],
    ids=str,
)
def test_the_bytes_saved_are_those_of_x_w_a_b_p_and_a_seed(base, adapter, autocast, dropout):
    M, K, N, r = 30, 70, 41, 5
    o = random_inputs(M, K, N, r, dtype=base, adapter_dtype=adapter, device=DEVICE)
    x, A, B = o.x.view(5, 6, K).requires_grad_(), o.A.requires_grad_(), o.B.requires_grad_()
    saved = []
    with (
        torch.autocast(DEVICE, autocast, enabled=autocast is not None),
        saved_tensors_hooks(lambda tensor: (saved.append(tensor.nbytes), tensor)[1], lambda tensor: tensor),
    ):
        lora_linear(x, o.W, o.b, A, B, o.s, dropout=dropout)
    computed = (autocast or base).itemsize
    wide = computed * (M * K + N * K)
    assert sum(saved) == wide + adapter.itemsize * r * (K + N) + 4 * M * r + (8 if dropout else 0)


@on_both
def test_every_saved_tensor_may_leave_and_return_w_included():
    """Hooks take copies, then the originals are ruined; so nothing is read past the hooks."""
    model, x = net(0.3), batch()
    wanted = gradients_of(model, x)
    torch.manual_seed(3)
    with saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        y = model(x).square().sum()
    with torch.no_grad():
        for tensor in (x, *model.parameters()):
            tensor.fill_(torch.nan)
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    assert same_bits(list(torch.autograd.grad(y, inputs)), wanted)


def test_saving_on_the_cpu_changes_no_bit():
    model, x = net(0.3), batch()

    def run(x):
        with save_on_cpu(pin_memory=DEVICE == "cuda"):
            return model(x)

    assert same_bits(gradients_of(model, x, run), gradients_of(model, x))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_checkpointing_under_autocast_changes_no_bit(use_reentrant, dropout):
    model, x = net(dropout, adapter_dtype=torch.float32), batch()

    def run(x):
        with torch.autocast(DEVICE, torch.float16):
            return checkpoint(model, x, use_reentrant=use_reentrant)

    def plain(x):
        with torch.autocast(DEVICE, torch.float16):
            return model(x)

    assert same_bits(gradients_of(model, x, run), gradients_of(model, x, plain))


OPERATOR = torch.ops.fastlora.lora_forward.default
KEPT = {
    "LoRA layers": (OPERATOR,),
    "matrix products": (aten.mm.default, aten.addmm.default),
    "the seed alone": (aten.randint.default,),
    "all": None,
}


@pytest.mark.parametrize("kept", quick(KEPT, "LoRA layers", "all"))
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_selective_checkpointing_changes_no_bit_whatever_is_kept(kept, dropout):
    model, x = net(dropout), batch(16)
    met = set()

    def policy(context, operator, *args, **kwargs):
        met.add(operator)
        keep = KEPT[kept] is None or operator in KEPT[kept]
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def run(x):
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(model, x, use_reentrant=False, context_fn=contexts)

    assert same_bits(gradients_of(model, x, run), gradients_of(model, x))
    # A layer is one operator to the policy, whose result can be named and kept.
    assert OPERATOR in met
    assert met.isdisjoint((aten.mm.default, aten.addmm.default, aten.addmm_.default))


@on_both
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_no_operand_is_written_to(dropout):
    o = random_inputs(16, 70, 41, 5, device=DEVICE)
    tensors = {"x": o.x, "W": o.W, "b": o.b, "A": o.A, "B": o.B, "dy": o.dy}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    x, A, B = (tensor.detach().requires_grad_() for tensor in (o.x, o.A, o.B))
    y = lora_linear(x, o.W, o.b, A, B, o.s, dropout=dropout)
    y.backward(o.dy, retain_graph=True)
    y.backward(o.dy)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])
        # A kernel's own writes raise no version; torch's operators do.
        assert tensor._version == versions[name]


def test_a_kept_graph_gives_the_same_bits_again_and_a_freed_one_is_refused():
    model, x = net(0.3), batch()
    y = model(x).square().sum()
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    first = torch.autograd.grad(y, inputs, retain_graph=True)
    second = torch.autograd.grad(y, inputs)
    assert same_bits(list(first), list(second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, inputs)
