"""Tensor parallel over LoRA layers."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import PrepareModuleInput, parallelize_module

import fastlora
from fastlora import FusedLoRALinear
from fastlora.measuring.errors import assert_within_budget
from fastlora.parallel import ColwiseParallel, RowwiseParallel
from tests.distributed.processes import Processes, device
from tests.distributed.runs import (
    IN,
    ROWS,
    assert_other_trained_alike,
    assert_trained_alike,
    batches,
    net,
    net_of_two,
    train,
    trained,
    whole,
)
from tests.distributed.sharding import divided, everyone, saves_and_reads
from tests.distributed.traffic import Traffic

# FSDP2 and DDP have quick tests.
pytestmark = pytest.mark.exhaustive

two, four = Processes(2), Processes(4)


@two.test
def test_two_processes_train_as_one_does(folder):
    model = divided(net())
    losses = train(model, batches())
    assert_trained_alike(model, losses)


@two.test
def test_an_adapter_put_in_use_after_dividing_trains_as_in_one_process(folder):
    model = divided(net_of_two())
    train(model, batches()[:1])
    fastlora.set_adapter(model, "other")
    assert_other_trained_alike(model, train(model, batches()))


@two.test
def test_each_process_holds_its_part_alone(folder):
    model = divided(net())
    up, down = model.blocks[0].up, model.blocks[0].down
    assert up.weight.to_local().shape == (8, IN)
    assert up.lora_A.to_local().shape == (3, IN)
    assert up.lora_B.to_local().shape == (8, 3)
    assert down.weight.to_local().shape == (IN, 8)
    assert down.lora_A.to_local().shape == (3, 8)
    assert down.lora_B.to_local().shape == (IN, 3)


@two.test
def test_no_more_is_sent_than_a_plain_layer_sends_but_for_small_gradients(folder):
    model = divided(net())
    block, r = model.blocks[0], 3
    x = batches()[0].x.requires_grad_()
    with Traffic() as forward:
        y = block(x)
    assert forward.sent == [("allreduce", ROWS * IN)], forward.sent  # y of the lower layer
    with Traffic() as backward:
        y.sum().backward()
    # dB of the lower layer, then dA and dx of the upper one in either order
    assert backward.sent[0] == ("allreduce", IN * r), backward.sent
    assert sorted(backward.sent[1:]) == [("allreduce", r * IN), ("allreduce", ROWS * IN)], backward.sent


@two.test
def test_a_disabled_update_leaves_the_plain_layer(folder):
    model, plain = divided(net()), net()
    x = batches()[0].x
    exact = net(torch.float64)
    for each in (model, plain, exact):
        fastlora.set_lora_enabled(each, False)
    assert_within_budget("y", model(x).detach(), plain(x).detach(), exact(x.double()).detach())


@two.test
def test_an_update_merged_and_then_disabled_leaves_the_plain_layer(folder):
    model, x = divided(net()), batches()[0].x
    fastlora.set_lora_enabled(model, False)
    expected = model(x)
    fastlora.set_lora_enabled(model, True)
    fastlora.merge_lora(model)
    fastlora.set_lora_enabled(model, False)
    assert torch.equal(model(x), expected)


@two.test
def test_plain_layers_take_the_same_styles(folder):
    model = divided(net(target_modules=["up"]))
    assert type(model.blocks[0].down) is nn.Linear
    assert_trained_alike(model, train(model, batches()), target_modules=["up"])


@two.test
def test_sequence_parallel_divides_rows_between_the_layers(folder):
    """Rows are gathered before the upper layer, and scattered after the lower one."""

    def rows(block):
        plan = {
            "up": ColwiseParallel(input_layouts=Shard(0)),
            "down": RowwiseParallel(output_layouts=Shard(0)),
        }
        return parallelize_module(block, everyone(), plan)

    x = batches()[0].x
    block, alone, exact = rows(net().blocks[0]), net().blocks[0], net(torch.float64).blocks[0]
    for each, value in ((block, x.chunk(2)[distributed.get_rank()]), (alone, x), (exact, x.double())):
        value = value.clone().requires_grad_()
        y = each(value)
        y.square().sum().backward()
        each.results = {"y": y.detach(), "dx": value.grad}
    for name, part in block.results.items():
        result = torch.cat(gathered(part))
        assert_within_budget(name, result, alone.results[name], exact.results[name])
    for name, parameter in trained(block).items():
        ours = whole(block.get_parameter(name).grad)
        grads = (each.get_parameter(name).grad for each in (alone, exact))
        assert parameter.shape == ours.shape
        assert_within_budget(name, ours, *grads)


def gathered(tensor):
    everywhere = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everywhere, tensor.contiguous())
    return everywhere


@two.test
def test_an_input_that_several_layers_share_is_summed_once(folder):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(IN, 8), nn.Linear(IN, 8)

        def forward(self, x):
            return self.q(x) * self.k(x)

    torch.manual_seed(0)
    model = fastlora.apply_lora(Attention(), fastlora.LoRAConfig(r=3)).to(device())
    plan = {"q": ColwiseParallel(), "k": ColwiseParallel()}
    parallelize_module(model, everyone(), plan)
    whole_input = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    parallelize_module(model, everyone(), whole_input)
    x = batches()[0].x.requires_grad_()
    y = model(x)
    with Traffic() as backward:
        y.sum().backward()
    assert backward.sent.count(("allreduce", ROWS * IN)) == 1


@two.test
def test_dropout_draws_one_mask_by_columns_and_another_in_each_process_by_rows(folder):
    def own_outputs(style):
        torch.manual_seed(5)
        layer = FusedLoRALinear(16, 16, r=16, dropout=0.5, bias=False)
        with torch.no_grad():  # the halves of each factor are equal, so only the mask can tell parts apart
            layer.weight.zero_()
            layer.lora_A.copy_(torch.eye(8).repeat(2, 2))
            layer.lora_B.copy_(torch.eye(8).repeat(2, 2))
        parallelize_module(layer.to(device()), everyone(), style)
        seen = []
        layer.register_forward_hook(lambda _, __, y: seen.append(y.clone()), prepend=True)
        layer(x)
        return gathered(seen[0]), gathered(torch.rand(4, device=device()))

    x = torch.ones(64, 16, device=device())
    by_columns, after = own_outputs(ColwiseParallel())
    assert torch.equal(*by_columns)
    assert torch.equal(*after)
    x = x[:, :8]
    by_rows, after = own_outputs(RowwiseParallel())
    assert not torch.equal(*by_rows)
    assert torch.equal(*after)


@two.test
def test_updates_are_merged_in_parts_and_taken_out_bit_for_bit(folder):
    model, plain, exact = divided(net()), net(), net(torch.float64)
    x = batches()[0].x
    before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    fastlora.merge_lora(model.eval())
    fastlora.merge_lora(plain.eval())
    assert_within_budget("y", model(x).detach(), plain(x).detach(), exact(x.double()).detach())
    for name, parameter in plain.named_parameters():
        one = parameter.detach()
        assert_within_budget(name, whole(model.get_parameter(name)), one, one.double())
    fastlora.unmerge_lora(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(whole(parameter), before[name]), name


@two.test
def test_adapters_are_gathered_written_by_one_process_and_read_again(folder):
    model = divided(net())
    train(model, batches())
    saves_and_reads(model, divided(net()), folder)


@two.test
def test_what_cannot_be_divided_is_refused(folder):
    odd = FusedLoRALinear(5, 7).to(device())
    with pytest.raises(ValueError, match="out_features must be a multiple of the 2 processes; got 7"):
        parallelize_module(odd, everyone(), ColwiseParallel())
    with pytest.raises(ValueError, match="in_features must be a multiple of the 2 processes; got 5"):
        parallelize_module(odd, everyone(), RowwiseParallel())
    started = nn.Sequential(FusedLoRALinear(4, 4, r=2)).to(device())
    fastlora.initialize(started, "pissa")
    for style in (ColwiseParallel(), RowwiseParallel()):
        with pytest.raises(ValueError, match="must have the W from before `initialize` to be divided"):
            parallelize_module(started[0], everyone(), style)
    merged = FusedLoRALinear(4, 4).to(device())
    merged.merge()
    with pytest.raises(ValueError, match="unmerge"):
        parallelize_module(merged, everyone(), ColwiseParallel())
    twice = parallelize_module(FusedLoRALinear(4, 4).to(device()), everyone(), ColwiseParallel())
    with pytest.raises(TypeError, match="spread"):
        parallelize_module(twice, everyone(), ColwiseParallel())


@pytest.mark.exhaustive
@four.test
def test_four_processes_train_as_one_does(folder):
    model = divided(net())
    assert_trained_alike(model, train(model, batches()))
