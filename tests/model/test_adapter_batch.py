"""Several adapters in one batch of a model."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    delete_adapter,
    lora_disabled,
    lora_layers,
    merge_lora,
    set_adapter,
    train_adapters,
    use_adapter,
)
from fastlora.measuring.errors import assert_within_budget

WIDTH = 6


def made(dropout=0.0):
    """A net of two layers with the adapters "default", "fr" and "de"; the last only on the first layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, 3))
    apply_lora(net, LoRAConfig(r=2, dropout=dropout))
    add_adapter(net, "fr", LoRAConfig(r=3, alpha=2, dropout=dropout))
    add_adapter(net, "de", LoRAConfig(r=1, target_modules=["0"], dropout=dropout))
    for _, layer in lora_layers(net):
        for adapter in layer.adapters.values():
            nn.init.normal_(adapter.lora_B)
    return net


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters() if "lora_" in name}


def both(x, net):
    """x and the net as they are, and in fp64."""
    return (x, net), (x.double(), copy.deepcopy(net).double())


def alone(net, x, name):
    """y of rows that all take one adapter, or none, and the gradients that a loss gives it."""
    net.zero_grad()
    if name in (None, "__base__"):
        with lora_disabled(net):
            return net(x).detach(), {}
    with use_adapter(net, name):
        y = net(x)
        y.square().sum().backward()
        return y.detach(), {own: grad for own, grad in gradients(net).items() if f".{name}." in own}


@pytest.fixture
def net():
    return made().eval()


@pytest.mark.parametrize("tokens", [(), (7,)])
def test_each_row_takes_its_adapter(net, tokens):
    names = ["fr", "default", None, "fr", "de", "__base__"]
    x = torch.randn(len(names), *tokens, WIDTH)
    with adapter_batch(net, names):
        y = net(x)
    for row, name in enumerate(names):
        one = slice(row, row + 1)
        torchs, truth = (alone(model, x[one], name)[0] for x, model in both(x, net))
        assert_within_budget(f"row {row}", y[one].detach(), torchs, truth)


def test_training_gives_gradients_to_the_batch_alone(net):
    train_adapters(net.train(), ["default", "fr", "de"])
    x = torch.randn(4, WIDTH)
    with adapter_batch(net, ["fr", None, "de", "fr"]):
        net(x).square().sum().backward()
    found = gradients(net)
    assert all(grad is None for name, grad in found.items() if "default" in name)
    mixed = {name: grad.clone() for name, grad in found.items() if grad is not None}
    assert {name.split(".")[2] for name in mixed} == {"fr", "de"}
    for one, rows in (("fr", [0, 3]), ("de", [2])):
        (_, torchs), (_, truth) = (alone(model, x[rows], one) for x, model in both(x, net))
        for name, grad in torchs.items():
            assert_within_budget(name, mixed[name], grad, truth[name])


def test_packed_tokens(net):
    ids = torch.tensor([[0, 0, 1, -1], [1, 1, 1, 0]])
    x = torch.randn(2, 4, WIDTH)
    with adapter_batch(net, ["fr", "de"], ids=ids):
        y, joined = net(x), net(x.flatten(0, 1))
    assert torch.equal(y.flatten(0, 1), joined)
    for name, index in (("fr", 0), ("de", 1)):
        torchs, truth = (alone(model, x[ids == index], name)[0] for x, model in both(x, net))
        assert_within_budget(name, y[ids == index].detach(), torchs, truth)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (3,)], ids=str)
def test_batches_without_rows(shape):
    model = made().eval()
    x = torch.randn(*(shape if 0 in shape else (*shape, 0)), 6, requires_grad=True)
    with adapter_batch(model, ["de", "fr"], ids=torch.ones(shape, dtype=torch.long)):
        y = model(x)
        y.sum().backward()
    assert y.shape == (*x.shape[:-1], 3)
    assert x.grad.shape == x.shape


def test_dropout_is_each_adapters_own():
    net = made(dropout=0.5)
    train_adapters(net, ["fr"])
    x = torch.randn(64, WIDTH)
    with adapter_batch(net, ["fr"] * 32 + [None] * 32):
        one, other = net(x), net(x)
    assert (one[:32] != other[:32]).any()
    assert torch.equal(one[32:], other[32:])


def test_afterwards_all_is_as_before(net):
    x = torch.randn(3, WIDTH)
    before = net(x)
    with adapter_batch(net, ["fr", "de", None]):
        net(x)
    assert torch.equal(net(x), before)
    assert all("_batch" not in vars(layer) for _, layer in lora_layers(net))


def test_a_copy_made_inside_is_outside(net):
    x = torch.randn(3, WIDTH)
    before = net(x)
    with adapter_batch(net, ["fr", "de", None]):
        twin = copy.deepcopy(net)
    assert torch.equal(twin(x), before)


def test_switched_off_inside(net):
    x = torch.randn(2, WIDTH)
    with lora_disabled(net):
        base = net(x)
        with adapter_batch(net, ["fr", "de"]):
            assert torch.equal(net(x), base)


def test_backward_with_checkpointing(net):
    from torch.utils.checkpoint import checkpoint

    train_adapters(net, ["fr", "de"])
    x = torch.randn(4, WIDTH, requires_grad=True)
    names = ["fr", "de", None, "fr"]
    with adapter_batch(net, names):
        net(x).sum().backward()
        plain = {name: grad.clone() for name, grad in gradients(net).items() if grad is not None}
        net.zero_grad()
        checkpoint(net, x, use_reentrant=True).sum().backward()
    for name, grad in plain.items():
        assert torch.equal(gradients(net)[name], grad)
    with adapter_batch(net, names):
        y = checkpoint(net, x, use_reentrant=True)
    with pytest.raises(ValueError, match=r"backward must be called inside adapter_batch"):
        y.sum().backward()
    with adapter_batch(net, names):
        y = checkpoint(net, x, use_reentrant=False)
    with pytest.raises(ValueError, match=r"backward must be called inside adapter_batch"):
        y.sum().backward()


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_whole(net):
    x = torch.randn(4, WIDTH)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    outside, names = compiled(x), ["fr", "de", None, "fr"]
    with adapter_batch(net, names):
        eager, found = net(x), compiled(x)
    with adapter_batch(wide := copy.deepcopy(net).double(), names):
        truth = wide(x.double())
    assert_within_budget("y", found.detach(), eager.detach(), truth.detach())
    assert (found != outside).any()
    assert torch.equal(compiled(x), outside)


def test_what_rests_in_a_training_batch_is_named(net):
    x = torch.randn(2, WIDTH)
    net.train()
    message = r"not trained, as they are not in use: 'fr', 'de'.*train_adapters"
    with pytest.warns(UserWarning, match=message), adapter_batch(net, ["fr", "de"]):
        net(x)
    train_adapters(net, ["fr", "de"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter_batch(net, ["fr", "de"]):
            net(x)
        net.eval()
        with adapter_batch(net, ["default", "de"]):
            net(x)


def test_an_optimizer_of_several_adapters_warns_of_none(net):
    train_adapters(net.train(), ["default", "fr", "de"])
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    kept = {name: p.detach().clone() for name, p in net.named_parameters() if ".default." in name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter_batch(net, ["fr", "de"]):
            net(torch.randn(2, WIDTH)).sum().backward()
        optimizer.step()
    assert all(torch.equal(p, kept[name]) for name, p in net.named_parameters() if name in kept)


def test_train_adapters_freezes_the_others(net):
    train_adapters(net, ["fr"])
    assert {n.split(".")[2] for n, p in net.named_parameters() if p.requires_grad} == {"fr"}
    set_adapter(net, "fr")
    assert {n.split(".")[2] for n, p in net.named_parameters() if p.requires_grad} == {"fr"}


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        ("fr", {}, TypeError, "names must be a sequence with the adapter of each row; got 'fr'"),
        (["fr", "dee"], {}, ValueError, r"names\[1\] must be one of default, fr, de, or None.*got 'dee'"),
        (["fr", 3], {}, ValueError, r"names\[1\] must be one of .*got 3"),
        (["fr"], {"ids": [0]}, TypeError, r"ids must be a tensor of integers; got \[0\]"),
        (
            ["fr"],
            {"ids": torch.tensor([0, 1])},
            ValueError,
            "ids must be -1 to 0, into names; got 1 at row 1",
        ),
        (["fr"], {"ids": torch.tensor(0)}, ValueError, r"ids must have shape \[batch\] or .*got \[\]"),
    ],
)
def test_what_is_no_batch_is_refused(net, names, options, error, message):
    with pytest.raises(error, match=message), adapter_batch(net, names, **options):
        raise AssertionError("entered")


def test_what_cannot_be_mixed_is_refused(net):
    with adapter_batch(net, ["fr", "de"]):
        with pytest.raises(
            ValueError, match=r"x of layer '0' must have shape \[2, \.\.\., K=6\].*got \[3, 6\]"
        ):
            net(torch.randn(3, WIDTH))
        with pytest.raises(ValueError, match="in no other adapter_batch"), adapter_batch(net, ["fr"]):
            raise AssertionError("entered")
        for change in (
            lambda: delete_adapter(net, "fr"),
            lambda: add_adapter(net, "it", LoRAConfig(r=1)),
            lambda: apply_lora(net, LoRAConfig(r=1)),
        ):
            with pytest.raises(ValueError, match="must be added and deleted outside adapter_batch"):
                change()
        merge_lora(net)
        with pytest.raises(ValueError, match="must be unmerged in adapter_batch"):
            net(torch.randn(2, WIDTH))
    with pytest.raises(ValueError, match="must be unmerged to mix adapters"), adapter_batch(net, ["fr"]):
        raise AssertionError("entered")
    with pytest.raises(TypeError, match="names must be a sequence of adapter names; got the string 'fr'"):
        train_adapters(net, "fr")
    with pytest.raises(ValueError, match="names must be one of default, fr, de; got 'it'"):
        train_adapters(net, ["it"])


def test_a_batch_of_inference_hides_no_layer_that_is_never_trained(net):
    with adapter_batch(net, ["fr", "de"]):
        net(torch.randn(2, WIDTH))
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net[0](torch.randn(2, WIDTH)).sum().backward()
    with pytest.warns(UserWarning, match=r"is to train the LoRA updates of '2' \(not used by the loss\)"):
        optimizer.step()


def test_rows_with_gaps_are_multiplied_without_them(monkeypatch):
    met = []
    for name in ("addmm_", "addmm"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, a, *rest, real=real, **kw: (met.append(a), real(self, a, *rest, **kw))[1],
        )
    net = made().bfloat16().eval()
    x = torch.randn(50, WIDTH + 2, dtype=torch.bfloat16)[:, :WIDTH]
    with adapter_batch(net, ["fr"] * 25 + [None] * 25):
        y = net[0](x)
        assert torch.equal(y, net[0](x.contiguous()))
    assert met
    assert all(a.is_contiguous() or a.t().is_contiguous() for a in met)
