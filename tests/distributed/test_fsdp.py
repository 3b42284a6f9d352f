"""FSDP2 (`fully_shard`) over LoRA layers: training, checkpoints, adapter files, merging.

One file, as starting the processes takes longer than what they run here."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import fastlora
from fastlora.parallel import LoadPlanner
from tests.distributed.processes import Processes, device
from tests.distributed.runs import (
    STEPS,
    Net,
    assert_other_trained_alike,
    assert_trained_alike,
    assert_updates_alike,
    averaged,
    batches,
    net,
    net_of_two,
    optimizer_of,
    parts,
    train,
    trained,
    whole,
)
from tests.testing import assert_within_budget

two, four = Processes(2), Processes(4)


def everyone() -> DeviceMesh:
    return init_device_mesh(device().type, (distributed.get_world_size(),))


def sharded(model, **options):
    """Each block a group of its own, as is done with transformers; the head is the root's."""
    options.setdefault("mesh", everyone())
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def trained_in_parts(**options):
    model = sharded(net())
    return model, train(model, parts(batches()), **options)


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
def test_a_full_state_dict_is_the_plain_models(folder):
    model, _ = trained_in_parts()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if distributed.get_rank() == 0:
        plain = net()
        plain.load_state_dict(state)
        assert torch.equal(plain.blocks[0].up.weight, net().blocks[0].up.weight)
        assert not torch.equal(plain.blocks[0].up.lora_B, net().blocks[0].up.lora_B)


@pytest.mark.exhaustive
@four.test
def test_a_run_goes_on_with_another_number_of_processes(folder):
    """Two processes save in parts after the first step; four read it and do the rest."""
    few = DeviceMesh(device().type, torch.arange(4).view(2, 2), mesh_dim_names=("copy", "shard"))["shard"]
    model = sharded(net(), mesh=few)
    optimizer = optimizer_of(model)
    half = {"index": few.get_local_rank(), "count": 2}
    first = train(model, parts(batches()[:1], **half), optimizer)
    if distributed.get_rank() < 2:
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        checkpoint.save(state, checkpoint_id=folder / "checkpoint", process_group=few.get_group())
    distributed.barrier()

    model = sharded(net())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = optimizer_of(model)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    rest = train(model, parts(batches()[1:]), optimizer)
    losses = averaged(torch.cat([first, rest]))
    assert len(losses) == STEPS
    assert_trained_alike(model, losses)


@two.test
def test_a_model_made_without_memory_is_filled_from_a_checkpoint(folder):
    trained_model, _ = trained_in_parts()
    state = {"model": trained_model.state_dict()}
    checkpoint.save(state, checkpoint_id=folder / "checkpoint")
    with torch.device("meta"):
        model = fastlora.apply_lora(Net(), fastlora.LoRAConfig(r=3, alpha=0.3))
    sharded(model).to_empty(device=device())
    state = {"model": model.state_dict()}
    checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(state["model"])
    x = batches()[0].x
    assert torch.equal(model(x), trained_model(x))


@two.test
def test_adapters_are_gathered_and_written_by_one_process(folder):
    model = fully_shard(net(), mesh=everyone())
    train(model, parts(batches()))
    model(batches()[0].x)  # leaves the root's parameters gathered, and here these are all
    fastlora.save_pretrained(model, folder / f"by-{distributed.get_rank()}")
    fastlora.save_adapter(model, folder / f"by-{distributed.get_rank()}.safetensors")
    distributed.barrier()
    assert not (folder / "by-1").exists()
    assert not (folder / "by-1.safetensors").exists()
    plain = fastlora.load_pretrained(torch_base(), folder / "by-0")
    one_file = fastlora.load_adapter(torch_base(), folder / "by-0.safetensors")
    for name, tensor in trained(model).items():
        assert torch.equal(tensor, plain.get_parameter(name)), name
        assert torch.equal(tensor, one_file.get_parameter(name)), name


def reads_adapter_files(folder):
    source = net()
    if distributed.get_rank() == 0:
        fastlora.save_pretrained(source, folder / "adapter")
    distributed.barrier()
    for read in (fastlora.load_pretrained, fastlora.hot_swap):
        model = sharded(net())
        with torch.no_grad():
            model.head.lora_A.zero_()
        model(batches()[0].x)
        read(model, folder / "adapter")
        model.reshard()  # what was written to a gathered copy is gone now
        for name, tensor in trained(model).items():
            assert torch.equal(tensor, source.get_parameter(name)), name


@two.test
def test_adapter_files_are_read_into_parts(folder):
    reads_adapter_files(folder)


@pytest.mark.exhaustive
@four.test
def test_adapter_files_are_read_also_where_a_rank_is_left_without_a_row_of_a(folder):
    reads_adapter_files(folder)


@two.test
def test_modules_trained_in_full_are_gathered_and_read_too(folder):
    options = {"target_modules": ["up", "down"], "modules_to_save": ["head"]}
    model = sharded(net(**options))
    train(model, parts(batches()))
    fastlora.save_pretrained(model, folder / "adapter")
    distributed.barrier()
    fresh = sharded(net(**options))
    fastlora.load_pretrained(fresh, folder / "adapter")
    for name, tensor in trained(model).items():
        assert torch.equal(tensor, whole(fresh.get_parameter(name))), name
    assert "head.weight" in trained(fresh)


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


def torch_base():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


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


def before(state):
    """A state as it was written when A and B of "default" were called lora_A and lora_B."""
    if isinstance(state, dict):
        return {before(key): before(value) for key, value in state.items()}
    if isinstance(state, list):
        return [before(each) for each in state]
    return state.replace(".adapters.default.", ".") if isinstance(state, str) else state


@two.test
def test_a_run_goes_on_from_a_checkpoint_with_the_names_of_before(folder):
    model = sharded(net())
    optimizer = optimizer_of(model)
    first = train(model, parts(batches()[:1]), optimizer)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(before(state), checkpoint_id=folder / "checkpoint")
    plain = before(model.state_dict())
    assert "head.lora_A" in plain

    model = sharded(net())
    optimizer = optimizer_of(model)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(state, checkpoint_id=folder / "checkpoint", planner=LoadPlanner())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    rest = train(model, parts(batches()[1:]), optimizer)
    assert_trained_alike(model, averaged(torch.cat([first, rest])))
    model.load_state_dict(plain)
    assert torch.equal(whole(model.head.lora_B), whole(plain["head.lora_B"]))
