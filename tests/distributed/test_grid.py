"""Tensor parallel within FSDP2, on a grid of processes."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

import fastlora
from tests.distributed.processes import Processes, device
from tests.distributed.runs import (
    assert_trained_alike,
    averaged,
    batches,
    loss_of,
    net,
    parts,
    train,
    whole,
)
from tests.distributed.sharding import BLOCKS, saves_and_reads

four = Processes(4)


def on_a_grid(model):
    """Two groups of two: FSDP2 between the groups, tensor parallel within each.

    The head is not divided: FSDP2 warns of a root whose result is a view, as that of torch's styles is.
    """
    mesh = init_device_mesh(device().type, (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], BLOCKS)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"]), mesh["data"]


@pytest.mark.exhaustive
@four.test
def test_tensor_parallel_within_fsdp2_trains_as_one_process_does(folder):
    model, data = on_a_grid(net())
    losses = train(model, parts(batches(), data.get_local_rank(), data.size()))
    assert model.blocks[0].up.lora_B.to_local().shape == (4, 3)
    assert_trained_alike(model, averaged(losses))


@pytest.mark.exhaustive
@four.test
def test_a_grid_saves_reads_and_merges_adapters(folder):
    model, data = on_a_grid(net())
    train(model, parts(batches(), data.get_local_rank(), data.size()))
    fresh, _ = on_a_grid(net())
    saves_and_reads(model, fresh, folder)
    # Before the forward pass, which leaves the root's parameters gathered, in memory that is freed again.
    before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    batch = batches()[0]
    unmerged = loss_of(model, batch)
    fastlora.merge_lora(model)
    assert not torch.equal(whole(model.head.weight), before["head.weight"])
    fastlora.unmerge_lora(model)
    assert torch.equal(loss_of(model, batch), unmerged)
    for name, parameter in model.named_parameters():
        assert torch.equal(whole(parameter), before[name]), name
