"""Models spread over every process, by FSDP2 or by tensor parallel."""

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import parallelize_module

import fastlora
from fastlora.parallel import ColwiseParallel, RowwiseParallel
from tests.distributed.processes import device
from tests.distributed.runs import Net, batches, net, parts, train, trained, whole

BLOCKS = {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
HEAD = {"head": ColwiseParallel(output_layouts=Replicate())}


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


def divided(model):
    return parallelize_module(model, everyone(), BLOCKS | HEAD)


def saves_and_reads(model, fresh, folder):
    fastlora.save_pretrained(model, folder / f"by-{distributed.get_rank()}")
    distributed.barrier()
    assert [path.name for path in folder.glob("by-*")] == ["by-0"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = fastlora.load_pretrained(Net(), folder / "by-0")
    fastlora.load_pretrained(fresh, folder / "by-0")
    for name, tensor in trained(model).items():
        assert torch.equal(tensor.cpu(), plain.get_parameter(name)), name
        assert torch.equal(tensor, whole(fresh.get_parameter(name))), name
