"""FSDP2 (`fully_shard`) over LoRA layers: training, merging, switching."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

import fastlora
from fastlora.measuring.errors import assert_within_budget
from tests.distributed.processes import Processes, device
from tests.distributed.runs import (
    assert_other_trained_alike,
    assert_trained_alike,
    assert_updates_alike,
    averaged,
    batches,
    net,
    net_of_two,
    parts,
    train,
    trained,
    whole,
)
from tests.distributed.sharding import sharded, trained_in_parts

two, four = Processes(2), Processes(4)


def trains_as_one_process(**options):
    model = sharded(net(), **options)
    assert_trained_alike(model, averaged(train(model, parts(batches()))))


@two.test
def test_two_processes_train_as_one_does(folder):
    trains_as_one_process()


@pytest.mark.exhaustive
@four.test
def test_four_processes_train_as_one_does_also_where_a_rank_is_left_without_a_row_of_a(folder):
    assert net().head.lora_A.shape[0] < distributed.get_world_size()
    trains_as_one_process()


@two.test
def test_parameters_that_stay_gathered_after_the_forward_pass_train_alike(folder):
    trains_as_one_process(reshard_after_forward=False)


@two.test
def test_parameters_offloaded_to_the_cpu_train_alike(folder):
    trains_as_one_process(offload_policy=CPUOffloadPolicy(pin_memory=device().type == "cuda"))


@two.test
def test_a_16_bit_base_and_fp32_updates_share_a_group(folder):
    def mixed(dtype, base):
        model = net(dtype)
        for _, layer in fastlora.lora_layers(model):
            layer.weight.data, layer.bias.data = layer.weight.to(base), layer.bias.to(base)
        return model

    def of(base, dtype):
        return [batch._replace(x=batch.x.to(base)) for batch in batches(dtype)]

    model = sharded(mixed(torch.float32, torch.bfloat16))
    losses = averaged(train(model, parts(of(torch.bfloat16, torch.float32))))
    assert model.head.lora_A.dtype == torch.float32
    alone, exact = mixed(torch.float32, torch.bfloat16), net(torch.float64)
    exact.load_state_dict(alone.state_dict())
    alone_losses = train(alone, of(torch.bfloat16, torch.float32))
    exact_losses = train(exact, [b._replace(x=b.x.double()) for b in of(torch.bfloat16, torch.float64)])
    assert_within_budget("losses", losses, alone_losses, exact_losses)
    assert_updates_alike(model, trained(alone), trained(exact))


@two.test
def test_a_mixed_precision_policy_computes_in_16_bits_and_keeps_fp32_updates(folder):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(net(), mp_policy=policy)
    losses = averaged(train(model, parts(batches())))

    class Cast(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            low = {name: value.bfloat16() for name, value in self.inner.named_parameters()}
            return torch.func.functional_call(self.inner, low, x.bfloat16())

    alone, exact = net(), net(torch.float64)
    alone_losses, exact_losses = train(Cast(alone), batches()), train(exact, batches(torch.float64))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_within_budget("losses", losses, alone_losses, exact_losses)
    assert_updates_alike(model, trained(alone), trained(exact))


@two.test
def test_updates_are_merged_in_parts_and_taken_out_bit_for_bit(folder):
    model, _ = trained_in_parts()
    x = batches()[0].x
    before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    unmerged = model(x).detach()
    plain = net()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(before[name])
    exact = net(torch.float64)
    exact.load_state_dict(plain.state_dict())
    fastlora.merge_lora(plain.eval())
    fastlora.merge_lora(model.eval())
    model.reshard()  # what was written to a gathered copy is gone now
    assert_within_budget("y", model(x).detach(), plain(x).detach(), exact(x.double()).detach())
    assert not torch.equal(whole(model.head.weight), before["head.weight"])
    fastlora.unmerge_lora(model)
    model.reshard()
    for name, parameter in model.named_parameters():
        assert torch.equal(whole(parameter), before[name]), name
    assert torch.equal(model(x), unmerged)


@two.test
def test_layers_in_parts_cannot_be_taken_out_of_the_model(folder):
    model = sharded(net())
    with pytest.raises(TypeError, match="before fully_shard"):
        fastlora.remove_lora(model, merge=True)


@two.test
def test_a_weight_that_is_not_finite_anywhere_stops_every_process_from_merging(folder):
    model = sharded(net())
    with torch.no_grad():
        local = model.head.lora_B.to_local()
        if distributed.get_rank() == 1:
            local[0] = float("inf")
    with pytest.raises(ValueError, match="finite"):
        fastlora.merge_lora(model)
    with pytest.raises(fastlora.AdapterError, match="finite"):
        fastlora.save_pretrained(model, folder / "adapter")


@two.test
def test_an_adapter_put_in_use_after_sharding_trains_as_in_one_process(folder):
    model = sharded(net_of_two())
    train(model, parts(batches()[:1]))
    before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    model(batches()[0].x)  # leaves the root's parameters gathered
    fastlora.set_adapter(model, "other")
    losses = averaged(train(model, parts(batches())))
    assert_other_trained_alike(model, losses)
    moved = {name for name, each in model.named_parameters() if not torch.equal(whole(each), before[name])}
    assert moved == trained(model).keys()


@two.test
def test_an_adapter_is_not_added_to_a_divided_model(folder):
    model = sharded(net())
    model(batches()[0].x)
    with pytest.raises(TypeError, match="must not be spread over processes for this"):
        fastlora.add_adapter(model, "other", fastlora.LoRAConfig(r=2))
    assert fastlora.adapter_names(model) == ("default",)
