"""FSDP2 (`fully_shard`) over LoRA layers: state dicts, checkpoints, adapter files."""

import pytest
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import fastlora
from fastlora.parallel import LoadPlanner
from tests.distributed.processes import Processes, device
from tests.distributed.runs import (
    STEPS,
    Net,
    assert_trained_alike,
    averaged,
    batches,
    net,
    optimizer_of,
    parts,
    train,
    trained,
    whole,
)
from tests.distributed.sharding import everyone, saves_and_reads, sharded, trained_in_parts

two, four = Processes(2), Processes(4)


def torch_base():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
@two.test
def test_biases_are_trained_in_parts_and_written_whole(folder):
    model, alone = sharded(net(bias="all")), net(bias="all")
    train(model, parts(batches()))
    train(alone, batches())
    for name, tensor in trained(model).items():
        torch.testing.assert_close(tensor, alone.get_parameter(name), msg=name)
    assert "head.bias" in trained(model)
    saves_and_reads(model, sharded(net(bias="all")), folder)
