"""The operators: registered soundly, compiled whole, on either path."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensor, FakeTensorMode

import fastlora
from fastlora.autograd import operators
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import decide, route
from fastlora.routes.decide import reload_tables
from fastlora.routes.route import Route
from fastlora_kernels import configs
from fastlora_kernels.tables import Win
from tests.cases import quick

# Dynamo looks at an autograd.Function by instantiating it, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

DROPOUTS = [(0.0, None), (0.25, torch.tensor([7]))]
BACKENDS = ["torch"] if torch.cuda.is_available() else ["torch", "triton"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", quick([True, False], True))
@pytest.mark.parametrize("dropout", DROPOUTS, ids=["whole", "dropped"])
def test_the_forward_operator_passes_opcheck(backend, bias, dropout):
    o = random_inputs(5, 7, 9, 3, bias=bias)
    with fastlora.set_backend(backend):
        torch.library.opcheck(operators.lora_forward, (o.x, o.W, o.b, o.A, o.B, o.s, *dropout))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "need", quick([(True, True, True), (False, True, False), (False, False, False)], (False, True, False))
)
@pytest.mark.parametrize("dropout", DROPOUTS, ids=["whole", "dropped"])
def test_the_backward_operator_passes_opcheck(backend, need, dropout):
    o = random_inputs(5, 7, 9, 3)
    with fastlora.set_backend(backend):
        _, p = operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, *dropout)
        torch.library.opcheck(operators.lora_backward, (o.dy, o.x, o.W, o.A, o.B, p, o.s, *dropout, *need))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", quick([0.0, 0.3], 0.3))
def test_a_compiled_model_equals_the_eager_one_without_a_graph_break(backend, dropout):
    model = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 3))
    model = fastlora.apply_lora(model, fastlora.LoRAConfig(r=2, alpha=3, dropout=dropout))
    for _, layer in fastlora.lora_layers(model):
        nn.init.normal_(layer.lora_B)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 7, requires_grad=True)
    with fastlora.set_backend(backend):
        torch.manual_seed(4)
        wanted = torch.autograd.grad(model(x).square().sum(), [x, *trained(model)])
        torch.manual_seed(4)
        ours = torch.autograd.grad(compiled(x).square().sum(), [x, *trained(model)])
    for ours_one, wanted_one in zip(ours, wanted, strict=True):
        torch.testing.assert_close(ours_one, wanted_one)


def test_a_compiler_sees_the_operators_whole():
    layer = fastlora.FusedLoRALinear(7, 5, r=2)
    targets = set()

    def collect(graph, inputs):
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        targets.update(node.target for part in parts for node in part.graph.nodes)
        return graph.forward

    torch.compile(layer, fullgraph=True, backend=collect)(torch.randn(3, 7)).sum().backward()
    assert {operators.lora_forward, operators.lora_backward} <= targets


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_one_compilation_serves_every_number_of_rows():
    layer = fastlora.FusedLoRALinear(7, 5, r=2)
    nn.init.normal_(layer.lora_B)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for M in (3, 8, 33):
        x = torch.randn(M, 7)
        assert torch.equal(compiled(x), layer(x))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (2, 0, 7)])
def test_empty_operands_run_on_either_path(backend, shape):
    layer = fastlora.FusedLoRALinear(shape[-1], 5, r=2) if shape[-1] else None
    if layer is None:
        with pytest.warns(UserWarning, match="zero-element"):
            layer = fastlora.FusedLoRALinear(0, 5, r=2)
    x = torch.ones(shape, requires_grad=True)
    with fastlora.set_backend(backend):
        y = layer(x)
        y.sum().backward()
    assert y.shape == (*shape[:-1], 5)
    assert x.grad.shape == x.shape
    assert not layer.lora_A.grad.any()


@pytest.fixture
def library_forward(monkeypatch):
    """A tile table whose measurement chose the vendor's product for the forward, and a GPU to read it for."""
    win = Win("forward", "float32", 3)
    entries = {
        kind: {name: entry._replace(library=(win,)) for name, entry in classes.items()}
        for kind, classes in configs.INTERPRETER.entries.items()
    }
    monkeypatch.setattr(configs, "INTERPRETER", configs.INTERPRETER._replace(entries=entries))
    monkeypatch.setattr(route, "_kernels_on", lambda *_: Route("triton", "a test says so"))
    monkeypatch.setattr(decide, "_ON_A_CPU", {})
    reload_tables()
    yield
    reload_tables()


@pytest.fixture
def launches(monkeypatch):
    """The names of the passes that the kernels ran."""
    from fastlora.routes import fused

    seen = []
    for name in ("forward", "backward"):
        run = getattr(fused, name)

        def spy(*args, name=name, run=run, **kwargs):
            seen.append(name)
            return run(*args, **kwargs)

        monkeypatch.setattr(fused, name, spy)
    return seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="reads the interpreter's table")
def test_a_pass_for_which_the_table_measured_the_library_goes_there(library_forward, launches):
    o = random_inputs(5, 7, 9, 3)
    y, p = operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, 0.0, None)
    assert launches == []
    found = operators.lora_backward(o.dy, o.x, o.W, o.A, o.B, p, o.s, 0.0, None, True, True, True)
    assert launches == ["backward"]
    torchs, truth = gradients(o), oracle(o)
    for name, result in zip(("y", "dx", "dA", "dB"), (y, *found), strict=True):
        assert_within_budget(name, result, torchs[name], truth[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason="reads the interpreter's table")
def test_with_dropout_both_passes_go_to_the_kernels_whose_mask_is_theirs(library_forward, launches):
    o = random_inputs(5, 7, 9, 3)
    seed = torch.tensor([7])
    _, p = operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, 0.25, seed)
    operators.lora_backward(o.dy, o.x, o.W, o.A, o.B, p, o.s, 0.25, seed, True, True, True)
    assert launches == ["forward", "backward"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="reads the interpreter's table")
def test_the_kernels_asked_for_by_name_run_whatever_was_measured(library_forward, launches):
    o = random_inputs(5, 7, 9, 3)
    with fastlora.set_backend("triton"):
        operators.lora_forward(o.x, o.W, o.b, o.A, o.B, o.s, 0.0, None)
    assert launches == ["forward"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors_go_through_the_operators_outside_their_mode_too(backend):
    with FakeTensorMode():
        o = random_inputs(5, 7, 9, 3)
    x, A, B = (tensor.requires_grad_() for tensor in (o.x, o.A, o.B))
    with fastlora.set_backend(backend):
        y = fastlora.lora_linear(x, o.W, o.b, A, B, o.s)
        y.backward(o.dy)
    assert (y.shape, x.grad.shape, A.grad.shape, B.grad.shape) == ((5, 9), (5, 7), (3, 7), (9, 3))
    assert isinstance(x.grad, FakeTensor)


def test_meta_tensors_have_shapes_through_both_passes_with_dropout_too():
    o = random_inputs(5, 7, 9, 3)
    x, W, b, A, B, dy = (tensor.to("meta") for tensor in (o.x, o.W, o.b, o.A, o.B, o.dy))
    x, A, B = (tensor.requires_grad_() for tensor in (x, A, B))
    y = fastlora.lora_linear(x, W, b, A, B, o.s, dropout=0.25)
    y.backward(dy)
    assert (y.shape, x.grad.shape, A.grad.shape, B.grad.shape) == ((5, 9), (5, 7), (3, 7), (9, 3))
